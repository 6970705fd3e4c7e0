"""The second gradient without the callback: raw PyTorch, manual optimization, Fabric."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from tests._two_point import (
    Loader,
    Net,
    data,
    differing,
    fit,
    gluon,
    state,
)


class ManualNet(Net):
    """Manual optimization; no dropout layers are needed for the streams to matter, so they stay."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.last(self.inner.linear(self.first(batch[0]))), batch[1])
            self.manual_backward(loss)
            return loss

        optimizer.step(closure)


def no_statistics(model: Net) -> Net:
    """Only the random streams are wound back for a closure; batch-norm statistics do not enter the gradient."""
    model.first[1].track_running_stats = False
    return model


def ends(model: Net, optimizer: Gluon) -> dict[str, Tensor]:
    return {
        k: v for k, v in state(model, optimizer).items() if "running" not in k and "steps" not in k and "mean" not in k
    }


@pytest.mark.parametrize("method", ["gluon-mvr1", "gluon-igt", "mars"])
def test_closures_equal_the_callback(method: str) -> None:
    def fresh(kind: type[Net]) -> Net:
        torch.manual_seed(1)
        return no_statistics(kind(method=method))

    def raw(model: Net) -> Gluon:
        optimizer = Gluon(model, lr=0.05, method=method)
        for x, y in Loader(data()):

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model.last(model.inner.linear(model.first(x))), y)
                loss.backward()
                return loss

            optimizer.step(closure)
        return optimizer

    def lightning(model: Net) -> Gluon:
        return gluon(fit(model))

    results = []
    for kind, train in ((Net, lightning), (ManualNet, lightning), (Net, raw)):
        model = fresh(kind)
        torch.manual_seed(2)
        results.append(ends(model, train(model)))
    assert differing(results[0], results[1]) == []
    assert differing(results[0], results[2]) == []


def test_fabric_takes_a_closure() -> None:
    from lightning.fabric import Fabric

    results = []
    for fabric in (None, Fabric(accelerator="cpu", devices=1)):
        torch.manual_seed(1)
        model: Any = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))
        optimizer: Any = Gluon(model, lr=0.05, method="gluon-mvr1")
        inner = optimizer
        if fabric is not None:
            model, optimizer = fabric.setup(model, optimizer)
        for x, y in Loader(data()):

            def closure(
                x: Tensor = x, y: Tensor = y, model: Any = model, some: Any = inner, fabric: Any = fabric
            ) -> Tensor:
                some.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward() if fabric is None else fabric.backward(loss)
                return loss

            optimizer.step(closure)
        results.append([parameter.detach().clone() for parameter in model.parameters()])
        assert inner.gradient_evaluations == 13
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_fabric_builds_the_optimizer_of_a_lightning_module() -> None:
    from lightning.fabric import Fabric

    model = Net(method="gluon-mvr1", schedule="cosine", total_steps=10)
    Fabric(accelerator="cpu", devices=1).setup(model)
    optimizer = model.configure_optimizers()["optimizer"]
    assert optimizer.two_point == "closure"
    assert optimizer.reference_point == "previous"


@pytest.mark.parametrize("method", ["gluon-mvr1", "gluon-igt", "mars"])
def test_the_first_step_without_a_closure_says_what_is_missing(method: str) -> None:
    layer = nn.Linear(3, 3)
    optimizer = Gluon(layer, lr=0.1, method=method)
    layer(torch.ones(1, 3)).sum().backward()
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"from the first step on: call `step\(closure\)`.*such as 'gluon'"):
        optimizer.step()
    assert torch.equal(layer.weight, before)
    assert not optimizer.state


def test_the_first_manual_step_without_a_closure_says_what_is_missing() -> None:
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.last(self.inner.linear(self.first(batch[0]))).square().mean())
            self.optimizers().step()

    model = Manual(method="gluon-mvr1")
    before = model.last.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"under manual optimization `step` needs a closure.*manual_backward"):
        fit(model)
    assert torch.equal(model.last.weight, before)


def test_the_trainer_of_transformers_is_told_at_its_first_step(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}

    model = Small()
    rows = [{"x": x, "labels": y} for x, y in data()]
    arguments = transformers.TrainingArguments(str(tmp_path), max_steps=3, report_to=[], use_cpu=True)
    optimizer = Gluon(model, lr=0.1, method="gluon-mvr1")
    runner = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
    with pytest.raises(RuntimeError, match=r"such as that of transformers, cannot give one"):
        runner.train()
    assert not optimizer.state


def test_a_step_that_only_creates_the_state_needs_no_closure() -> None:
    """Distributed checkpoints take one before they load: no learning rate, gradients of zeros."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    optimizer = Gluon(layer, lr=0.1, method="gluon-mvr1")
    found = get_optimizer_state_dict(layer, optimizer)
    assert "momentum" in found["state"]["weight"]
    assert torch.equal(layer.weight, before)


def test_a_loop_of_ones_own_says_so() -> None:
    layer = nn.Linear(3, 3)
    optimizer = Gluon(layer, lr=0.1, method="gluon-mvr1")
    optimizer.two_point = "loop"
    for _ in range(2):
        layer(torch.ones(1, 3)).sum().backward()
        if optimizer.needs_reference:
            with pytest.raises(RuntimeError, match=r"gradients at the previous iterate are missing"):
                optimizer.step()
        else:
            optimizer.step()
