"""The two-point pass under Lightning: exact against a replay without it, and invisible to everything else."""

from __future__ import annotations

import random
from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from two_point import FLAT, QUIET, Inner, Loader, Memory, Net, Pairs, data, differing, fit, gluon, state, trainer

from lightning_gluon import Gluon
from lightning_gluon.callbacks import VarianceReduction
from lightning_gluon.callbacks.second_pass import copy_batch
from lightning_gluon.callbacks.untouched import Buffers, untouched
from lightning_gluon.callbacks.variance_reduction import _refuse

TWO = ["gluon-mvr1", "gluon-mvr2", "gluon-mvr3", "muon-mvr", "mars", "limuon"]
CLIPPED = 1e-7  # measured: 0


# ---------------------------------------------------------------- against a replay


class Recorder(pl.Callback):
    """Record what a replay needs: the streams and the batch before every micro-batch, the weights before every step."""

    def __init__(self) -> None:
        self.windows: list[list[tuple[Tensor, Any]]] = [[]]
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, runner: pl.Trainer, module: nn.Module, batch: Any, batch_idx: int) -> None:
        if not self.windows[-1]:
            self.weights.append({name: value.clone() for name, value in module.state_dict().items()})
        self.windows[-1].append((torch.get_rng_state(), batch))

    def on_train_batch_end(self, runner: pl.Trainer, *args: Any) -> None:
        if not runner.fit_loop._should_accumulate():
            self.windows.append([])


def gradient(
    model: nn.Module, weights: dict[str, Tensor], window: list, accumulate: int, clip: Any
) -> dict[str, Tensor]:
    """The gradient of a window at given weights, with plain autograd."""
    model.load_state_dict(weights)
    model.zero_grad()
    for rng, (x, y) in window:
        torch.set_rng_state(rng)
        loss = nn.functional.cross_entropy(model.last(model.inner.linear(model.first(x))), y)
        (loss / accumulate).backward()
    kind, value = clip
    if kind == "norm":
        nn.utils.clip_grad_norm_(model.parameters(), value)
    elif kind == "value":
        nn.utils.clip_grad_value_(model.parameters(), value)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


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
    monkeypatch.setattr("lightning_gluon.callbacks.second_pass.set_rng_state", lambda state: None)
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


class Bare(Net):
    """Without metrics, which do not follow half precision."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x = batch[0].to(self.last.weight.dtype)
        loss = nn.functional.cross_entropy(self.last(self.inner.linear(self.first(x))).float(), batch[1])
        self.log("loss", loss)
        return loss


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


def test_clipping_applies_to_both_with_the_users_own_rule() -> None:
    class Clips(Net):
        norms: list[float]

        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            norm = nn.utils.clip_grad_norm_(self.parameters(), 0.1)
            self.log("norm", norm)

    class After(pl.Callback):
        largest = 0.0

        def on_fit_start(self, runner: pl.Trainer, module: pl.LightningModule) -> None:
            gluon(runner).register_step_pre_hook(lambda *_: None)
            original = gluon(runner)._reference_list

            def looked_at(chunks: Any) -> Any:
                references = original(chunks)
                if references:
                    norms = torch.stack([reference.norm() for reference in references])
                    After.largest = max(After.largest, norms.norm().item())
                return references

            gluon(runner)._reference_list = looked_at

    pairs = Pairs()
    fit(Clips(method="gluon-mvr1"), callbacks=[pairs, After()])
    raw = max(torch.stack([old.norm() for _, _, old in step]).norm().item() for step in pairs.steps)
    assert After.largest == pytest.approx(0.1, rel=1e-4)
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


# ---------------------------------------------------------------- igt


class Watch(pl.Callback):
    """Where the weights are, seen from hooks and from a forward hook of the module."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Tensor]] = []
        self.path: list[Tensor] = []

    def look(self, where: str, module: Any) -> None:
        self.seen.append((where, module.last.weight.detach().clone()))

    def on_fit_start(self, runner: pl.Trainer, module: Any) -> None:
        hook = lambda *_: self.look("training" if module.training else "validation", module)  # noqa: E731
        module.last.register_forward_pre_hook(hook)
        self.path = [module.last.weight.detach().clone()]

    def on_train_batch_start(self, runner: pl.Trainer, module: Any, *args: Any) -> None:
        self.look("outside", module)

    def on_after_backward(self, runner: pl.Trainer, module: Any) -> None:
        self.look("outside", module)

    def on_before_optimizer_step(self, runner: pl.Trainer, module: Any, *args: Any) -> None:
        self.look("outside", module)

    def on_save_checkpoint(self, runner: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self.seen.append(("checkpoint", checkpoint["state_dict"]["last.weight"].clone()))

    def on_train_batch_end(self, runner: pl.Trainer, module: Any, *args: Any) -> None:
        if not runner.fit_loop._should_accumulate():
            self.path.append(module.last.weight.detach().clone())


def test_igt_shifts_the_weights_in_training_only(tmp_path: Any) -> None:
    model, watch = Net(method="gluon-igt", momentum=0.75), Watch()
    runner = trainer(callbacks=[watch], accumulate_grad_batches=2, val_check_interval=2, num_sanity_val_steps=0)
    runner.fit(model, Loader(data(batches=6)), Loader(data(batches=1)))
    runner.save_checkpoint(tmp_path / "x.ckpt")
    x = watch.path
    assert len(x) == 4
    at = {"training": [], "validation": [], "outside": [], "checkpoint": []}
    for where, weight in watch.seen:
        at[where].append(weight)
    shifted = [x[0], *(now + 3 * (now - before) for before, now in pairwise(x[:3]))]  # 3 = b / (1 - b)
    expected = {
        "training": [y for y in shifted for _ in range(2)],
        "outside": [now for now in x[:3] for _ in range(5)],  # two batch starts and backwards, one step
        "validation": x[1:],
        "checkpoint": x[-1:],
    }
    for where, weights in expected.items():
        assert len(at[where]) == len(weights), where
        for one, other in zip(at[where], weights, strict=True):
            assert torch.equal(one, other) if where != "training" else torch.allclose(one, other, atol=1e-6), where
    assert not torch.allclose(at["training"][2], x[1], atol=1e-4)
    assert gluon(runner).gradient_evaluations == 3


def test_igt_momentum_equals_a_replay() -> None:
    model, recorder = Net(method="gluon-igt", momentum=0.75, **FLAT), Recorder()
    twin = deepcopy(model)
    optimizer = gluon(fit(model, callbacks=[recorder], accumulate_grad_batches=2, gradient_clip_val=0.3))
    momentum: dict[str, Tensor] = {}
    names = [name for name, _ in twin.named_parameters()]
    for k, weights in enumerate(recorder.weights):
        before = recorder.weights[max(0, k - 1)]
        point = {n: weights[n] + (weights[n] - before[n]) * 3.0 if n in names else weights[n] for n in weights}
        new = gradient(twin.train(), point, recorder.windows[k], 2, ("norm", 0.3))
        momentum = {n: torch.lerp(momentum[n], new[n], 0.25) if k else new[n] for n in names}
    for name, parameter in model.named_parameters():
        assert (optimizer.state[parameter]["momentum"] - momentum[name]).abs().max() <= CLIPPED, name


def test_igt_survives_a_skipped_batch_and_an_exception() -> None:
    class Fails(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            if batch_idx == 5:
                raise KeyError("stop")
            return None if batch_idx == 3 else super().training_step(batch, batch_idx)

    model, watch = Fails(method="gluon-igt"), Watch()
    with pytest.raises(KeyError):
        fit(model, callbacks=[watch])
    assert torch.equal(model.last.weight, watch.path[-1])


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


# ---------------------------------------------------------------- where it hooks in


def test_attached_once_and_first() -> None:
    runner = fit(Net(method="gluon-mvr1"), callbacks=[Pairs()])
    assert [type(callback) for callback in runner.callbacks] == [VarianceReduction, Pairs]
    runner.fit(Net(method="gluon-mvr1"), Loader(data()))
    assert [type(callback) for callback in runner.callbacks] == [VarianceReduction, Pairs]


class ByHand(Net):
    def configure_optimizers(self) -> Any:
        return Gluon(self, **{"lr": 0.05, **self.options})


def test_an_optimizer_built_by_hand() -> None:
    ends = []
    for kind, callbacks in ((Net, [Pairs()]), (ByHand, [Pairs(), VarianceReduction()])):
        torch.manual_seed(1)
        model = kind(method="gluon-mvr1")
        runner = fit(model, callbacks=callbacks)
        ends.append(state(model, gluon(runner)))
    assert isinstance(runner.callbacks[0], VarianceReduction)
    assert differing(*ends) == []


def test_without_the_callback_it_says_which_line_to_add() -> None:
    with pytest.raises(RuntimeError, match=r"Add `lightning_gluon\.callbacks\.VarianceReduction\(\)`"):
        fit(ByHand(method="gluon-mvr1"))


@pytest.mark.parametrize("kind", ["gluon", "adamw"])
def test_inert_where_nothing_is_needed(kind: str) -> None:
    class AdamW(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    pl.seed_everything(1)
    runner = fit(AdamW() if kind == "adamw" else ByHand(method="gluon"), callbacks=[VarianceReduction()])
    assert runner.global_step == 7
    if kind == "gluon":
        assert runner.callback_metrics["gluon/gradient_evaluations"] == 7


def test_with_the_other_lightning_package() -> None:
    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return Gluon(self, lr=0.0, method="gluon-mvr1")

    pairs = Pairs()
    runner = pytorch_lightning.Trainer(**QUIET, callbacks=[pairs, VarianceReduction()])
    runner.fit(Other(), Loader(data()))
    assert len(pairs.steps) == 6
    assert pairs.unequal() == []
    assert runner.callback_metrics["gluon/gradient_evaluations"] == 13


def test_cost_is_logged_after_every_step() -> None:
    logger = Memory()
    fit(Net(method="gluon-mvr1"), logger=logger, log_every_n_steps=2, accumulate_grad_batches=2)
    rows = [row["gluon/gradient_evaluations"] for _, row in logger.rows if "gluon/gradient_evaluations" in row]
    assert rows == [3.0, 7.0]


def test_leaves_the_trainer_and_the_module_as_they_were() -> None:
    model = Net(method="gluon-mvr1")
    runner = fit(model)
    assert "training_step" not in vars(runner.strategy)
    assert "configure_gradient_clipping" not in vars(model)
    assert gluon(runner).two_point == "closure"
    assert not gluon(runner)._optimizer_step_pre_hooks


def test_an_exception_in_the_second_pass_leaves_the_weights_alone() -> None:
    calls = SimpleNamespace(count=0)

    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            calls.count += 1
            if calls.count == 5:
                raise KeyError("stop")
            return super().training_step(batch, batch_idx)

    model, watch, logger = Fails(method="gluon-mvr1"), Watch(), Memory()
    runner = trainer(callbacks=[watch], logger=logger)
    with pytest.raises(KeyError):
        runner.fit(model, Loader(data()))
    assert torch.equal(model.last.weight, watch.path[-1])
    assert "training_step" not in vars(runner.strategy)
    assert "configure_gradient_clipping" not in vars(model)
    assert "log" not in vars(model)
    assert runner.loggers == [logger]


class Tuned(Net):
    def __init__(self) -> None:
        super().__init__(method="gluon-mvr1")
        self.lr, self.batch_size = 0.05, 4

    def train_dataloader(self) -> Loader:
        return Loader(data(), self.batch_size)

    def val_dataloader(self) -> Loader:
        return Loader(data(batches=1), self.batch_size)


@pytest.mark.parametrize("finder", ["lr", "batch size"])
def test_finders_run_plain_momentum_with_one_warning(finder: str, tmp_path: Any) -> None:
    if finder == "lr":
        callback: Any = LearningRateFinder(num_training_steps=5, update_attr=False)
    else:
        callback = BatchSizeFinder(steps_per_trial=3, max_trials=1)
    pairs = Pairs()
    runner = trainer(callbacks=[callback, pairs], default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="finders remove all callbacks") as caught:
        runner.fit(Tuned())
    assert sum("finders remove all callbacks" in str(warning.message) for warning in caught) == 1
    assert len(pairs.steps) == runner.global_step - 1 > 0
    assert gluon(runner).gradient_evaluations == 2 * runner.global_step - 1


def test_a_late_and_an_unused_parameter() -> None:
    class Late(Bare):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.first.requires_grad_(False)
            self.spare = nn.Linear(3, 3)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                self.first.requires_grad_(True)
                gluon(self.trainer).add_param_group({"params": list(self.first.parameters())})

    pairs = Pairs()
    model = Late(method="gluon-mvr1", lr=0.0)
    optimizer = gluon(fit(model, callbacks=[pairs]))
    assert len(pairs.steps) == 6
    assert {name for name, _, _ in pairs.steps[-1]} > {name for name, _, _ in pairs.steps[0]}
    assert pairs.unequal() == []
    assert model.spare.weight not in optimizer.state


def test_a_parameter_that_skips_a_step_is_compared_with_where_it_was() -> None:
    """Its previous iterate is where it stood one step ago, not where it stood when it last moved."""
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = Gluon(nn.ModuleList([one, two]), lr=0.1, method="gluon-mvr1")
    for used in ([one, two], [one, two], [one]):

        def closure(used: list = used) -> Tensor:
            optimizer.zero_grad()
            loss = sum(layer(torch.ones(2, 3)).square().sum() for layer in used)
            loss.backward()
            return loss

        before = one.weight.detach().clone()
        optimizer.step(closure)
    with optimizer.at_reference():
        assert torch.equal(one.weight, before)
        assert torch.equal(two.weight, optimizer.state[two.weight]["previous"])
        kept = two.weight.detach().clone()
    assert torch.equal(two.weight, kept)
    assert not torch.equal(one.weight, before)


# ---------------------------------------------------------------- refusals


def test_refuses_manual_optimization() -> None:
    class Manual(ByHand):
        automatic_optimization = False

    with pytest.raises(ValueError, match=r"works under automatic optimization.*step\(closure\)"):
        fit(Manual(method="gluon-mvr1"), callbacks=[VarianceReduction()])


def test_refuses_a_step_that_draws_its_batch() -> None:
    class Draws(Net):
        def training_step(self, dataloader_iter: Any) -> None:
            raise AssertionError("never reached")

    with pytest.raises(ValueError, match=r"draws its batch inside the step"):
        fit(Draws(method="gluon-mvr1"))


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy"])
def test_refuses_strategies(name: str) -> None:
    strategy = type("Own", (type(name, (), {}),), {})()  # a subclass of the user's is refused as well
    with pytest.raises(ValueError, match=f"cannot run under `{name}`"):
        _refuse(SimpleNamespace(strategy=strategy), Net())


def test_refused_names_exist() -> None:
    for name in ("FSDPStrategy", "DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy"):
        module = {"SingleDeviceXLAStrategy": "single_xla", "XLAStrategy": "xla", "FSDPStrategy": "fsdp"}
        assert hasattr(getattr(pl.strategies, module.get(name, "deepspeed")), name)


# ---------------------------------------------------------------- without the callback: closures


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


# ---------------------------------------------------------------- the parts


def test_buffers_written_to_and_replaced_come_back() -> None:
    norm = nn.BatchNorm1d(2)
    norm.register_buffer("wide", torch.zeros(1).expand(5))  # cannot be written to, and must not be
    mean, before = norm.running_mean, Buffers(norm)
    norm(torch.randn(4, 2))
    norm.running_var = torch.full((2,), 9.0)
    before.restore_()
    assert norm.running_mean is mean
    assert norm.running_mean.tolist() == [0.0, 0.0]
    assert norm.running_var.tolist() == [1.0, 1.0]


def test_attributes_lists_and_metrics_come_back() -> None:
    model = Inner()
    model.numbers, model.table, model.names, model.count = [1], {"a": 1}, {"x"}, 0
    model.mean.update(2.0)
    numbers, logger = model.numbers, Memory()
    runner = trainer(logger=logger)
    with untouched(runner, model):
        model.numbers.append(2)
        model.table.update(a=2, b=3)
        model.names.add("y")
        model.count += 1
        model.new = 1
        model.mean.update(10.0)
        model.log("a", 1.0)
        model.print("silent")
        runner.loggers[0].log_metrics({"a": 1.0})
    assert (model.numbers, model.table, model.names, model.count) == ([1], {"a": 1}, {"x"}, 0)
    assert model.numbers is numbers
    assert not hasattr(model, "new")
    assert "log" not in vars(model)
    assert model.mean.compute() == 2.0
    assert logger.rows == []
    assert runner.loggers == [logger]


def test_batches_are_copied_down_to_their_tensors() -> None:
    from collections import OrderedDict, UserDict, namedtuple
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Sample:
        x: Tensor
        label: str

    Point = namedtuple("Point", "x y")
    x = torch.zeros(2)
    batch = [x, (x, "s"), Point(x, 1), OrderedDict(a=x), UserDict(a=x), Sample(x, "l"), None, 3]
    other = copy_batch(batch)
    x += 1
    assert [type(item) for item in other] == [type(item) for item in batch]
    tensors = [other[0], other[1][0], other[2].x, other[3]["a"], other[4]["a"], other[5].x]
    assert all(tensor.tolist() == [0.0, 0.0] for tensor in tensors)
    assert other[5].label == "l"
