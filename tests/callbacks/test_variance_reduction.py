"""The two-point pass under Lightning: exact against a replay without it, and invisible to everything else."""

from __future__ import annotations

import random
from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gluon.two_point.closures import old_gradients
from tests._two_point import (
    FLAT,
    Bare,
    Loader,
    Memory,
    Net,
    Pairs,
    Recorder,
    Watch,
    data,
    fit,
    gluon,
    gradient,
    trainer,
)

TWO = ["gluon-mvr1", "gluon-mvr2", "gluon-mvr3", "muon-mvr", "mars", "limuon"]
CLIPPED = 1e-7  # measured: 0


# ---------------------------------------------------------------- against a replay


def replay(model: nn.Module, recorder: Recorder, accumulate: int, clip: Any, b: float) -> dict[str, Tensor]:
    """STORM's momentum along the recorded weights, without Lightning and without our optimizer."""
    momentum: dict[str, Tensor] = {}
    model.train()
    for k, weights in enumerate(recorder.weights):
        new = gradient(model, weights, recorder.windows[k], accumulate, clip)
        if k == 0:
            momentum = new
            continue
        old = gradient(model, recorder.weights[k - 1], recorder.windows[k], accumulate, clip)
        momentum = {name: new[name] + b * (momentum[name] - old[name]) for name in new}
    return momentum


CLIPS = [(None, None), ("norm", 0.3), ("value", 0.01)]


@pytest.mark.parametrize("clip", CLIPS, ids=["unclipped", "norm", "value"])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_momentum_equals_a_replay(accumulate: int, clip: Any) -> None:
    """Seven batches: windows of 2 and 4 end in a partial one."""
    model, recorder = Net(method="gluon-mvr1", momentum=0.8, **FLAT), Recorder()
    twin = deepcopy(model)
    options = {} if clip[0] is None else {"gradient_clip_algorithm": clip[0], "gradient_clip_val": clip[1]}
    optimizer = gluon(fit(model, callbacks=[recorder], accumulate_grad_batches=accumulate, max_epochs=2, **options))
    expected = replay(twin, recorder, accumulate, clip, 0.8)
    assert len(recorder.weights) == 2 * -(-7 // accumulate)
    allowed = 0.0 if clip[0] is None else CLIPPED
    for name, parameter in model.named_parameters():
        assert (optimizer.state[parameter]["momentum"] - expected[name]).abs().max() <= allowed, name


def test_the_replay_notices_a_wrong_second_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gluon.replay.snapshot.set_rng_state", lambda state: None)
    model, recorder = Net(method="gluon-mvr1", momentum=0.8, **FLAT), Recorder()
    twin = deepcopy(model)
    optimizer = gluon(fit(model, callbacks=[recorder]))
    expected = replay(twin, recorder, 1, (None, None), 0.8)
    assert (optimizer.state[model.last.weight]["momentum"] - expected["last.weight"]).abs().max() > 1e-3


# ---------------------------------------------------------------- at lr 0 both gradients are the same


@pytest.mark.parametrize("method", TWO)
def test_equal_weights_give_equal_gradients(method: str) -> None:
    pairs = Pairs()
    fit(Net(method=method, lr=0.0), callbacks=[pairs], accumulate_grad_batches=2)
    assert len(pairs.steps) == 3
    assert pairs.unequal() == []


def test_gradients_differ_where_the_weights_do() -> None:
    pairs = Pairs()
    fit(Net(method="gluon-mvr1"), callbacks=[pairs])
    assert len(set(pairs.unequal())) == len(pairs.steps[0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_equal_gradients_in_every_precision(precision: str) -> None:
    pairs = Pairs()
    fit(Bare(method="gluon-mvr1", lr=0.0), callbacks=[pairs], precision=precision, accumulate_grad_batches=2)
    assert len(pairs.steps) == 3
    assert pairs.unequal() == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_folded_gradients_give_the_same_momentum(accumulate: int) -> None:
    """`-b c_old` is added to `.grad` instead of being kept beside it: the same sum in another order."""
    momenta = []
    for fold in (False, True):
        torch.manual_seed(1)
        model = Net(method="gluon-mvr1", momentum=0.8, fold=fold, **FLAT)
        optimizer = gluon(fit(model, accumulate_grad_batches=accumulate))
        momenta.append(torch.cat([optimizer.state[p]["momentum"].flatten() for p in model.parameters()]))
        assert optimizer.gradient_evaluations == 2 * -(-7 // accumulate) - 1
    assert (momenta[0] - momenta[1]).abs().max() <= 1e-4  # measured: 2e-6 after 7 steps along slightly different paths


def test_folded_gradients_cannot_be_clipped() -> None:
    class Clips(Net):
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("never reached")

    with pytest.raises(ValueError, match="Expected no `gradient_clip_val` with `fold`"):
        fit(Net(method="gluon-mvr1", fold=True), gradient_clip_val=1.0)
    with pytest.raises(ValueError, match="Expected no `configure_gradient_clipping` with `fold`"):
        fit(Clips(method="gluon-mvr1", fold=True))


def test_equal_gradients_when_the_accumulation_changes() -> None:
    pairs = Pairs()
    schedule = GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})
    runner = fit(Net(method="gluon-mvr1", lr=0.0), callbacks=[pairs, schedule], max_epochs=3)
    assert runner.global_step == 7 + 3 + 4
    assert len(pairs.steps) == runner.global_step - 1
    assert pairs.unequal() == []


def test_batches_that_the_step_writes_to_or_skips() -> None:
    class Rough(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            y = batch.pop("y")
            batch["x"] *= 1 + torch.rand(1)
            return None if batch_idx == 3 else super().training_step((batch["x"], y), batch_idx)

    pairs = Pairs()
    batches = DataLoader([{"x": x, "y": y} for x, y in Loader(data())], batch_size=None)
    fit(Rough(method="gluon-mvr1", lr=0.0), loader=batches, callbacks=[pairs])
    assert len(pairs.steps) == 5  # of seven the first needs no second gradient, and one is skipped
    assert pairs.unequal() == []


def test_a_skipped_micro_batch_inside_a_window() -> None:
    class Skips(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            return None if batch_idx in {3, 4} else super().training_step(batch, batch_idx)

    pairs = Pairs()
    fit(Skips(method="gluon-mvr1", lr=0.0), callbacks=[pairs], accumulate_grad_batches=2)
    assert len(pairs.steps) == 3
    assert pairs.unequal() == []


def test_dict_outputs_and_own_backward() -> None:
    class Own(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {"loss": super().training_step(batch, batch_idx), "extra": 1}

        def backward(self, loss: Tensor, *args: Any) -> None:
            (2 * loss).backward()

    pairs = Pairs()
    fit(Own(method="gluon-mvr1", lr=0.0), callbacks=[pairs])
    assert pairs.steps
    assert pairs.unequal() == []


class Counts(Bare):
    """The loss depends on how many steps there were."""

    count = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.count += 1
        return super().training_step(batch, batch_idx) / self.count


class Carries(Bare):
    """A recurrent state, carried from batch to batch in a buffer that does not exist at first."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("state", None)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.first(batch[0])
        x = x if self.state is None else x + self.state
        self.state = x.detach().tanh()
        return nn.functional.cross_entropy(self.last(self.inner.linear(x)), batch[1])


class Draws(Bare):
    """Noise from a stream of the module's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.stream = torch.Generator().manual_seed(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        noise = torch.rand(batch[0].shape, generator=self.stream)
        return super().training_step((batch[0] * (1 + noise), batch[1]), batch_idx)


class Teaches(Bare):
    """A momentum teacher, moved by the step itself, in the way of BYOL and DINO."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.teacher = nn.Linear(8, 3).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for own, other in zip(self.teacher.parameters(), self.last.parameters(), strict=True):
            own.data.mul_(0.5).add_(other.data, alpha=0.5)
        x = self.inner.linear(self.first(batch[0]))
        loss = (self.last(x) - self.teacher(x)).square().mean()
        return loss + nn.functional.cross_entropy(self.last(x), batch[1])


@pytest.mark.parametrize("kind", [Counts, Carries, Draws, Teaches])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_same_function_is_seen_again(kind: type[Net], accumulate: int) -> None:
    """Whatever a step carries over from the last one, the second pass starts from what the first one started from."""
    pairs = Pairs()
    fit(kind(method="gluon-mvr1", lr=0.0), callbacks=[pairs], accumulate_grad_batches=accumulate)
    assert len(pairs.steps) == -(-7 // accumulate) - 1
    assert pairs.unequal() == []


@pytest.mark.parametrize("kind", [Counts, Carries, Draws, Teaches])
def test_what_a_step_carries_is_carried_once(kind: type[Net]) -> None:
    ends = []
    for method in ("gluon", "gluon-mvr1"):
        torch.manual_seed(1)
        model = kind(method=method, momentum=0.0)
        fit(model)
        ends.append([value.tolist() for value in model.state_dict().values()])
    assert ends[0] == ends[1]


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_micro_batch_skipped_at_the_previous_iterate_only(accumulate: int, fold: bool) -> None:
    """A guard in the step, against a loss that is not finite say, sees other weights there: plain momentum then."""
    calls = SimpleNamespace(counts=[0] * 7)

    class Guards(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            calls.counts[batch_idx] += 1
            skipped = batch_idx == 3 and calls.counts[3] == 2
            return None if skipped else super().training_step(batch, batch_idx)

    pairs = Pairs()
    fit(Guards(method="gluon-mvr1", lr=0.0, fold=fold), callbacks=[pairs], accumulate_grad_batches=accumulate)
    assert calls.counts[3] == 3
    assert pairs.unequal() == []


def test_parameters_frozen_in_between_with_folded_gradients() -> None:
    class Freezes(Bare):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.first.requires_grad_(batch_idx not in {3, 4})

    model = Freezes(method="gluon-mvr1", fold=True)
    assert gluon(fit(model)).gradient_evaluations == 13


def test_a_clipping_rule_that_learns_does_so_once() -> None:
    clipped: list[Tensor] = []

    class Learns(Bare):
        norms: list[float]

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.norms, self.rules = [], []

        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
            self.norms.append(norm.item())
            nn.utils.clip_grads_with_norm_(self.parameters(), sum(self.norms) / len(self.norms) / 2, norm)
            clipped.append(self.last.weight.grad.clone())

    model = Learns(method="gluon-mvr1", lr=0.0)
    fit(model)
    assert len(model.norms) == 7
    assert len(clipped) == 13
    assert all(torch.equal(one, other) for one, other in zip(clipped[1::2], clipped[2::2], strict=True))


def test_clipping_applies_to_both_with_the_users_own_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clips(Net):
        norms: list[float]

        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            norm = nn.utils.clip_grad_norm_(self.parameters(), 0.1)
            self.log("norm", norm)

    def looked_at(params: list[Tensor], *given: Any) -> list[Tensor]:
        references = old_gradients(params, *given)
        largest.append(torch.stack([reference.norm() for reference in references]).norm().item())
        return references

    largest: list[float] = []
    monkeypatch.setattr("lightning_gluon.optimizer.old_gradients", looked_at)
    pairs = Pairs()
    fit(Clips(method="gluon-mvr1"), callbacks=[pairs])
    raw = max(torch.stack([old.norm() for _, _, old in step]).norm().item() for step in pairs.steps)
    assert max(largest) == pytest.approx(0.1, rel=1e-4)
    assert raw > 0.2  # monitors saw the raw pair


# ---------------------------------------------------------------- with no weight on the old momentum: the plain method


def streams() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def outcome(method: str, extra: dict[str, Any], **options: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    model, logger = Net(method=method, momentum=0.0, **extra), Memory()
    runner = fit(model, loader=Loader(data()), logger=logger, max_epochs=2, **options)
    rows = [(step, {k: v for k, v in row.items() if not k.startswith("gluon/")}) for step, row in logger.rows]
    metrics = {k: v.item() for k, v in runner.callback_metrics.items() if not k.startswith("gluon/")}
    return {
        "weights and batch norm": {name: value.tolist() for name, value in model.state_dict().items()},
        "logs": [(step, row) for step, row in rows if row],
        "metrics": metrics,
        "metric states": [model.metrics["MulticlassAccuracy"].tp.tolist(), model.inner.mean.mean_value.tolist()],
        "attributes": [model.seen, len(model.outputs), [value.item() for value in model.outputs]],
        "streams": streams(),
        "steps": runner.global_step,
    }


@pytest.mark.parametrize(("method", "extra"), [("gluon-mvr1", {}), ("mars", {"clip": None}), ("gluon-igt", {})])
def test_without_old_momentum_it_is_the_plain_method(method: str, extra: dict[str, Any]) -> None:
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    plain, reduced = outcome("gluon", {}, **options), outcome(method, extra, **options)
    assert plain["attributes"][0] == 56
    assert plain["logs"]
    for key in plain:
        assert plain[key] == reduced[key], key


def test_validation_sees_the_same() -> None:
    values = []
    for method in ("gluon", "gluon-mvr1"):
        torch.manual_seed(1)
        model, runner = Net(method=method, momentum=0.0), trainer(val_check_interval=2)
        runner.fit(model, Loader(data()), Loader(data(seed=5)))
        values.append(runner.callback_metrics["val_loss"].item())
    assert values[0] == values[1]


# ---------------------------------------------------------------- loss scaling


def scaled(**options: Any) -> MixedPrecision:
    """16-mixed on the CPU, which Lightning allows only this way."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0, **options))


def test_overflow_of_a_folded_pass_is_forgotten_with_its_step() -> None:
    calls = SimpleNamespace(count=0)

    class Overflows(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            calls.count += 1
            return super().training_step(batch, batch_idx) * (float("inf") if calls.count == 5 else 1.0)

    watch = Watch()
    runner = fit(Overflows(method="gluon-mvr1", fold=True), callbacks=[watch], plugins=[scaled()])
    assert sum(torch.equal(one, other) for one, other in pairwise(watch.path)) == 1
    assert gluon(runner).gradient_evaluations == 1 + 2 * 5


def test_loss_scale_is_taken_out_of_both() -> None:
    pairs = Pairs()
    fit(Bare(method="gluon-mvr1", lr=0.0), callbacks=[pairs], plugins=[scaled()], accumulate_grad_batches=2)
    assert len(pairs.steps) == 3
    assert pairs.unequal() == []
    assert max(new.abs().max().item() for step in pairs.steps for _, new, _ in step) < 3  # 64 times less than scaled


def test_overflow_in_the_second_pass_skips_the_step() -> None:
    calls = SimpleNamespace(count=0)  # not a module: the second pass counts here

    class Overflows(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            calls.count += 1
            return super().training_step(batch, batch_idx) * (float("inf") if calls.count == 5 else 1.0)

    plugin, watch = scaled(), Watch()
    runner = fit(Overflows(method="gluon-mvr1"), callbacks=[watch], plugins=[plugin])  # calls: 1, 2 3, 4 5, ...
    moved = [not torch.equal(one, other) for one, other in pairwise(watch.path)]
    assert moved == [True, True, False, True, True, True, True]
    assert plugin.scaler.get_scale() == 32.0
    assert gluon(runner).gradient_evaluations == 1 + 2 * 5
