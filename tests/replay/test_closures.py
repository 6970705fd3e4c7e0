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


def test_step_without_closure_says_what_is_missing() -> None:
    layer = nn.Linear(3, 3)
    optimizer = Gluon(layer, lr=0.1, method="gluon-mvr1")
    for _ in range(2):
        layer(torch.ones(1, 3)).sum().backward()
        if optimizer.needs_reference:
            with pytest.raises(
                RuntimeError, match=r"gradients at the previous iterate are missing: call `step\(closure\)`"
            ):
                optimizer.step()
        else:
            optimizer.step()
