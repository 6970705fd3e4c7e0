"""`gamma="auto"` in a training: known answers, a forced constant, exact resume, and what it refuses."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.estimators.gamma import estimated_gamma, observe_
from lightning_gluon.two_point.parts import Spread
from tests._two_point import FLAT, Net, Recorder, fit, gluon, gradient

TWO = ["gluon-mvr1", "gluon-mvr2", "gluon-mvr3", "muon-mvr", "mars", "limuon"]


def moments(model: nn.Module, recorder: Recorder, params: dict[str, nn.Parameter], b: float) -> tuple[float, float]:
    """Signal and power of the groups of some parameters along recorded weights, in windows of two."""
    kept: tuple[float, float] | None = None
    for k in range(1, len(recorder.weights)):
        window = recorder.windows[k]
        if len(window) < 2:
            continue
        halves = []
        for batch in window:
            new = gradient(model, recorder.weights[k], [batch], 1, (None, None))
            old = gradient(model, recorder.weights[k - 1], [batch], 1, (None, None))
            halves.append(torch.cat([(new[name] - old[name]).flatten() for name in params]))
        one, other = halves
        found = (one @ other).item(), ((one + other) / 2).square().sum().item()
        kept = found if kept is None else tuple(b * x + (1 - b) * y for x, y in zip(kept, found, strict=True))
    assert kept is not None
    return kept


def test_the_estimate_is_that_of_halves() -> None:
    """Seven batches in windows of two: the last window of an epoch has one, and tells nothing."""
    model, recorder = Net(method="gluon-mvr1", gamma="auto", momentum=0.8, **FLAT), Recorder()
    twin = deepcopy(model)
    optimizer = gluon(fit(model, callbacks=[recorder], accumulate_grad_batches=2, max_epochs=2))
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert set(optimizer.gammas) == {group["name"] for group in optimizer.param_groups}
    for group in optimizer.param_groups:
        own = {names[parameter]: parameter for parameter in group["params"]}
        assert group["gamma_moments"] == pytest.approx(moments(twin, recorder, own, 0.8), rel=1e-3)
        assert 0 <= optimizer.gammas[group["name"]] <= 1


def force(group: dict[str, Any], spread: Spread | None) -> None:
    """Read a constant."""
    group["gamma_moments"] = (0.3, 1.0)


def weights(**options: Any) -> Tensor:
    torch.manual_seed(1)
    model = Net(momentum=0.8, **options, **FLAT)
    fit(model, accumulate_grad_batches=2)
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("method", TWO)
def test_a_constant_estimate_is_that_constant(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weights(method=method, gamma=0.3)
    monkeypatch.setattr("lightning_gluon.optimizer.observe_", force)
    assert torch.equal(weights(method=method, gamma="auto"), expected)


def test_the_estimate_is_used() -> None:
    assert not torch.equal(weights(method="gluon-mvr1", gamma="auto"), weights(method="gluon-mvr1", gamma=1.0))


def test_bounds_and_averages() -> None:
    group: dict[str, Any] = {"gamma": "auto", "momentum": 0.5}
    assert estimated_gamma(group) is None
    observe_(group, Spread(4.0, -1.0))
    assert group["gamma_moments"] == (-1.0, 4.0) and estimated_gamma(group) == 0.0
    observe_(group, Spread(2.0, 9.0))
    assert group["gamma_moments"] == (4.0, 3.0) and estimated_gamma(group) == 1.0
    observe_(group, None)  # the last window of an epoch
    observe_(group, Spread(float("nan"), float("nan")))
    assert group["gamma_moments"] == (4.0, 3.0)
    observe_(group, Spread(1.0, -4.0))
    assert estimated_gamma(group) == 0.0
    assert estimated_gamma({"gamma_moments": (0.0, 0.0)}) == 1.0


@pytest.mark.parametrize("stop", [3, 4])
def test_resume_is_exact(stop: int, tmp_path: Path) -> None:
    """After 3 batches the window of two is half full."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 0 and batch_idx + 1 == stop:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def build() -> Net:
        torch.manual_seed(1)
        return Net(dropout=0.0, method="gluon-mvr1", gamma="auto", momentum=0.8, **FLAT)

    whole, resumed = build(), build()
    first = gluon(fit(whole, callbacks=[Stop()], accumulate_grad_batches=2, max_epochs=2))
    second = gluon(
        fit(resumed, callbacks=[], accumulate_grad_batches=2, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    )
    for one, other in zip(first.param_groups, second.param_groups, strict=True):
        assert one["gamma_moments"] == other["gamma_moments"]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    saved = torch.load(tmp_path / "half.ckpt", weights_only=False)["optimizer_states"][0]
    assert ("parts" in saved) == (stop == 3)
    saved["param_groups"][0]["gamma_moments"] = (float("nan"), 1.0)
    with pytest.raises(ValueError, match="Expected `gamma_moments` of group"):
        second.load_state_dict(saved)


def test_it_is_logged() -> None:
    runner = fit(Net(method="gluon-mvr1", gamma="auto", **FLAT), accumulate_grad_batches=2)
    logged = {name: value for name, value in runner.callback_metrics.items() if name.startswith("gluon/gamma/")}
    expected = {f"gluon/gamma/{name}": gamma for name, gamma in gluon(runner).gammas.items()}
    assert {name: value.item() for name, value in logged.items()} == pytest.approx(expected)


# ---------------------------------------------------------------- what it refuses


def test_one_micro_batch_on_one_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="a single micro-batch on a single rank"):
        fit(Net(method="gluon-mvr1", gamma="auto"))


def test_a_closure_is_refused_before_anything_has_moved() -> None:
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    optimizer = Gluon(layer, lr=0.1, method="gluon-mvr1", gamma="auto")
    with pytest.raises(ValueError, match="which a closure or a loop adds up unseen"):
        optimizer.step(lambda: layer(torch.ones(1, 4)).sum().backward())
    assert torch.equal(layer.weight, before) and not optimizer.state


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("gluon-mvr1", {"gamma": "often"}, "to satisfy 0 <= gamma < inf or be 'auto', but got 'often'"),
        ("gluon-mvr1", {"gamma": "auto", "fold": True}, "to be a number with `fold`, but got 'auto'"),
        ("mars-approximate", {"gamma": "auto"}, "takes no second gradient of the same sample"),
    ],
)
def test_values_that_are_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gluon(nn.Linear(4, 4), lr=0.1, method=method, **options)


def test_sharded_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradients are averaged before a hook could see them."""
    monkeypatch.setattr("lightning_gluon.callbacks.variance_reduction.is_sharded", lambda parameter: True)
    with pytest.raises(ValueError, match="which sharded parameters do not show"):
        fit(Net(method="gluon-mvr1", gamma="auto"), accumulate_grad_batches=2)
