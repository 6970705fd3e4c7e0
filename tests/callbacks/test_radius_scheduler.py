"""RadiusScheduler in the Trainer."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_gluon import configure_optimizers
from lightning_gluon.callbacks import RadiusScheduler, SmoothnessMonitor
from lightning_gluon.configure import AUTO_LARGEST, AUTO_LR
from lightning_gluon.radius.agreement import Agreement
from lightning_gluon.radius.calibrate import STEP_BACK
from lightning_gluon.radius.observe import Observation
from lightning_gluon.radius.radii import peak_lr
from lightning_gluon.smoothness.plots import read_samples
from tests._slope import Deep, Slope, run
from tests._two_point import Loader, Memory, Net, data, fit, gluon


def copies(scheduler: RadiusScheduler) -> dict:
    """The weights before the last step, as a checkpoint would hold them."""
    return scheduler.state_dict()["measurements"].get("Agreement", {}).get("before", {})


@pytest.mark.parametrize("method", ["gluon", "muon", "gluon-mvr1", "limuon"])
def test_every_method_is_calibrated(method):
    torch.manual_seed(0)
    model, scheduler = Slope(method, lr=AUTO_LR), RadiusScheduler("calibrate")
    run(model, scheduler, batches=400)
    lrs, radii = zip(*model.steps, strict=True)
    assert set(lrs) == {AUTO_LR}  # the radius is written, never lr
    assert scheduler.rule.done
    reasons = {"gluon": ("agreement", "loss"), "muon": ("agreement", "loss", "held")}
    assert scheduler.rule.main.reason in reasons.get(method, ("curvature", "loss"))
    assert radii[1] < radii[20] < radii[40]
    assert len(set(radii[-100:])) == 1
    assert not copies(scheduler)  # none is kept once the radii are frozen


@pytest.mark.parametrize("method", ["muon", "muon-mvr"])
def test_adamw_beside_an_lmo_is_calibrated_apart(method):
    torch.manual_seed(0)
    model, scheduler = Deep(method, lr=AUTO_LR), RadiusScheduler("calibrate")
    runner = run(model, scheduler, batches=400)
    assert scheduler.rule.done
    found, base = ({group["name"]: group["radius"] for group in gluon(runner).param_groups}, scheduler.control.base)
    assert found["hidden"] == scheduler.rule.main.scale * base["hidden"]
    for name in found.keys() - {"hidden"}:
        assert found[name] == scheduler.rule.adamw.scale * base[name]
    assert scheduler.rule.adamw.scale != scheduler.rule.main.scale


def test_lr_auto_ends_the_ramp_at_the_largest_radius():
    # A least-squares problem bears far longer steps: nothing else ends the ramp.
    torch.manual_seed(0)
    model = Slope(lr="auto")
    runner = run(model, batches=400)
    scheduler = next(callback for callback in runner.callbacks if isinstance(callback, RadiusScheduler))
    lrs, radii = zip(*model.steps, strict=True)
    assert set(lrs) == {AUTO_LR}
    assert scheduler.rule.main.reason == "largest"
    assert AUTO_LARGEST <= max(radii) < 1.15 * AUTO_LARGEST
    assert radii[-1] == pytest.approx(max(radii) * STEP_BACK)


def test_lr_auto_finds_a_radius_that_trains():
    def loss(lr):
        torch.manual_seed(0)
        model = Slope(lr=lr, schedule="linear")
        run(model, batches=300)
        return float((model.layer.weight - torch.eye(4)).norm())

    fixed = {lr: loss(lr) for lr in (0.0003, 0.003, 0.03, 0.3, 3.0)}
    assert loss("auto") < sorted(fixed.values())[2]


def test_any_schedule_works_on_top_and_warm_up_is_made_up_for():
    schedules = {"constant": {}, "cosine": {"schedule": "cosine"}, "warm": {"warmup": 60}}
    found = {}
    for name, options in schedules.items():
        torch.manual_seed(0)
        model, scheduler = Slope(lr=AUTO_LR, **options), RadiusScheduler("calibrate")
        runner = run(model, scheduler, batches=300)
        found[name] = peak_lr(gluon(runner).param_groups[0]) * scheduler.radii["hidden"]
        assert len({lr for lr, _ in model.steps}) > (1 if options else 0)
    # Without making up for it, the run with a warm-up of 60 of 300 steps would end at a radius several times larger.
    assert all(1 / 3 < found[name] / found["constant"] < 3 for name in found)


def test_a_start_far_too_large_is_a_smaller_first_factor():
    # Without weight decay steps depend on the product alone; 16 is a power of two, so nothing is rounded.
    def weights(lr, start):
        torch.manual_seed(0)
        model = Deep("gluon", lr=lr)
        run(model, RadiusScheduler("calibrate", options={"start": start}), batches=60)
        return model.state_dict(), [lr * radius for lr, radius in model.steps[1:]]

    (one, steps), (other, others) = weights(0.125, 1 / 32), weights(16 * 0.125, 1 / 512)
    assert steps == others
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_groups_added_late_take_the_factor_that_was_found():
    class Unfreezes(BaseFinetuning):
        def freeze_before_training(self, module):
            self.freeze(module.first, train_bn=False)

        def finetune_function(self, module, epoch, optimizer):
            if epoch in (1, 3):
                self.unfreeze_and_add_param_group(module.first[0 if epoch == 1 else 1], optimizer)

    scheduler = RadiusScheduler("calibrate", freeze_step=16)  # in the third epoch
    model = Net(method="gluon-mvr1", schedule="linear", lr=0.02)
    runner = fit(model, callbacks=[Unfreezes(), scheduler], max_epochs=4)
    groups = gluon(runner).param_groups
    assert [group["name"] for group in groups] == ["hidden", "head", "bias", "hidden_2", "bias_2", "bias_3"]
    factors = [group["radius"] / scheduler.control.base[group["name"]] for group in groups]
    assert factors == pytest.approx([factors[0]] * 6)
    assert factors[0] < 0.5


def test_smoothness_rule_in_the_trainer_writes_radii_by_role_and_layer():
    for per in ("role", "layer"):
        scheduler = RadiusScheduler("smoothness", options={"per": per}, every_n_steps=2, max_growth=2.0)
        runner = fit(Net(method="gluon"), callbacks=[scheduler], max_epochs=2)
        hidden = gluon(runner).param_groups[0]["radius"]
        assert hidden != scheduler.control.base["hidden"]
        assert isinstance(hidden, list) == (per == "layer")


def test_smoothness_rule_by_layer_leaves_adamw_its_one_radius():
    scheduler = RadiusScheduler("smoothness", options={"per": "layer", "samples": 1}, every_n_steps=2)
    runner = fit(Net(method="muon"), callbacks=[scheduler])
    groups = {group["name"]: group["radius"] for group in gluon(runner).param_groups}
    assert isinstance(groups["bias"], float)
    assert groups["bias"] != scheduler.control.base["bias"]
    assert groups["hidden"] != scheduler.control.base["hidden"]


def test_smoothness_rule_sees_the_gradient_where_the_weights_are():
    # With igt `.grad` belongs to a point many steps ahead: fed to the rule it made longer steps, without end.
    torch.manual_seed(0)
    model = Slope("gluon-igt")
    run(model, RadiusScheduler("smoothness", every_n_steps=4), batches=60)
    assert max(radius for _, radius in model.steps) < 20


def test_a_function_sets_radii_and_they_are_logged():
    memory, seen = Memory(), []

    def halve(observation: Observation):
        seen.append(observation.step)
        return {"hidden": 2.0**-observation.step}

    runner = fit(Net(method="gluon"), callbacks=[RadiusScheduler(halve, freeze_step=3)], logger=memory)
    assert seen == [0, 1, 2]
    assert gluon(runner).param_groups[0]["radius"] == 0.25
    logged = [row["radius/hidden"] for _, row in memory.rows if "radius/hidden" in row]
    assert logged == [1.0, 0.5, *[0.25] * 5]
    assert any("radius/head" in row for _, row in memory.rows)


@pytest.mark.parametrize("rule", ["calibrate", "smoothness"])
def test_nothing_is_measured_once_the_radii_are_frozen(rule):
    class Counting(Slope):
        calls = 0

        def training_step(self, batch, batch_idx):
            Counting.calls += 1
            return super().training_step(batch, batch_idx)

    # A sample is due at step 3, for which the weights before are copied: it is not taken, now or ever.
    scheduler = RadiusScheduler(rule, every_n_steps=4, freeze_step=3)
    run(Counting(), scheduler, batches=20)
    assert Counting.calls == 20
    assert not copies(scheduler)
    assert not scheduler.control.sampled


def test_loss_of_a_short_window_is_its_mean():
    class Constant(Slope):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + 2.0

    def rule(seen):
        losses.append(seen.loss)

    losses: list[float] = []
    rule.needs = Agreement
    fit(Constant(), callbacks=[RadiusScheduler(rule)], accumulate_grad_batches=3, max_epochs=2)  # 3, 3 and 1 of 7
    assert losses == [None, *[2.0] * 5]


def test_smoothing_does_not_lengthen_the_first_step_of_a_ramp():
    model = Slope()
    run(model, RadiusScheduler("calibrate", smoothing=0.9), batches=20)
    radii = [radius for _, radius in model.steps]
    assert radii[:2] == [1.0, 1 / 64]  # each before its step
    assert radii[1:] == sorted(radii[1:])


def test_freeze_as_a_share_of_the_training():
    seen = []
    fit(Net(method="gluon"), callbacks=[RadiusScheduler(lambda o: seen.append(o.step), freeze_step=0.5)])
    assert seen == [0, 1, 2, 3]  # of 7


class Stream(IterableDataset):
    """As many batches as the data has, but nobody is told how many."""

    def __init__(self, batches: int) -> None:
        self.data = data(batches=batches, size=32)

    def __iter__(self):
        return iter(self.data)


def test_a_training_of_unknown_length_is_calibrated():
    # Lightning estimates -1 steps for loaders without a length: the ramp must not take that for its end.
    torch.manual_seed(0)
    model, scheduler = Slope(lr="auto"), RadiusScheduler("calibrate")
    fit(model, loader=DataLoader(Stream(40), batch_size=32), callbacks=[scheduler])
    assert not scheduler.rule.done
    assert model.steps[-1][1] > 4 * model.steps[1][1]


def test_a_share_of_an_unknown_length_is_refused():
    scheduler = RadiusScheduler(lambda seen: 1.0, freeze_step=0.5)
    with pytest.raises(ValueError, match=r"`freeze_step`=0\.5 is a share of all steps, but the Trainer does not know"):
        fit(Slope(), loader=DataLoader(Stream(4), batch_size=32), callbacks=[scheduler])
    with pytest.raises(ValueError, match=r"`warmup`=0\.5 is a share of all steps, but `total_steps` is unknown"):
        fit(Slope(warmup=0.5), loader=DataLoader(Stream(4), batch_size=32))


def test_limits_hold_in_training():
    model = Slope()
    scheduler = RadiusScheduler(lambda seen: 1e6, bounds=(0.1, 10.0), max_growth=2.0, smoothing=0.5)
    run(model, scheduler, batches=8)
    assert [radius for _, radius in model.steps] == [1.0, 2.0, 4.0, 8.0, *[10.0] * 4]  # each before its step
    model = Slope()
    run(model, RadiusScheduler(lambda seen: 0.0, bounds=(0.1, 10.0)), batches=2)
    assert [radius for _, radius in model.steps] == [1.0, 0.1]


@pytest.mark.parametrize("rule", ["calibrate", "smoothness"])
@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_accumulated_micro_batches_are_one_batch(method, rule):
    def radii(size, **options):
        torch.manual_seed(0)
        model = Slope(method)
        scheduler = RadiusScheduler(rule, every_n_steps=5)
        loader = Loader(data(batches=100, size=32), size)
        fit(model, loader=loader, callbacks=[scheduler], **options)
        return [radius for _, radius in model.steps], scheduler

    whole, scheduler = radii(32)
    parts, _ = radii(8, accumulate_grad_batches=4)
    assert len(set(whole)) > 3
    assert parts[:70] == pytest.approx(whole[:70], rel=1e-3)  # later nothing but rounding is left of the gradients
    assert scheduler.control.steps == 100


def test_calibrate_under_mixed_precision():
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        scheduler = RadiusScheduler("calibrate")
        run(Slope(lr=0.1), scheduler, batches=300, precision=precision)
        assert scheduler.rule.main.reason in ("agreement", "loss")
        found[precision] = scheduler.rule.main.scale
    assert 1 / 2 < found["bf16-mixed"] / found["32-true"] < 2


def test_layers_are_logged_by_name():
    memory = Memory()
    rule = lambda seen: {"inner.linear.weight": 0.5}  # noqa: E731
    fit(Net(method="gluon"), callbacks=[RadiusScheduler(rule)], logger=memory)
    keys = {key for _, row in memory.rows for key in row if key.startswith("radius/")}
    assert {"radius/inner.linear.weight", "radius/head"} <= keys
    assert "radius/hidden" not in keys


# ---------------------------------------------------------------- where it cannot work


class Manual(Slope):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_calibrate_under_manual_optimization():
    torch.manual_seed(0)
    scheduler = RadiusScheduler("calibrate")
    run(Manual(), scheduler, batches=200)
    assert scheduler.rule.main.agreement.count > 20


def refused(error, message, model, *arguments, **options):
    with pytest.raises(error, match=message):
        fit(model, callbacks=[RadiusScheduler(*arguments, **options)], max_steps=2)


def test_start_refuses():
    refused(ValueError, "'smoothness' needs the gradient of the same sample at two points", Manual(), "smoothness")
    refused(ValueError, r"`RadiusScheduler\(log=True\)` needs a logger", Net(method="gluon"), log=True)

    class Foreign(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    refused(TypeError, "Expected an optimizer of `lightning_gluon`", Foreign())


def test_lr_auto_needs_a_trainer():
    with pytest.raises(ValueError, match="`lr='auto'` adds a callback to the module's Trainer, but this module has"):
        configure_optimizers(nn.Linear(2, 2), lr="auto")
    with pytest.raises(ValueError, match="Expected `lr` to be a number or 'auto', but got 'big'"):
        configure_optimizers(nn.Linear(2, 2), lr="big")


def test_lr_auto_beside_another_scheduler():
    with pytest.raises(
        ValueError, match=r"by the rule 'calibrate', but the Trainer has a .* with the rule 'smoothness'"
    ):
        run(Slope(lr="auto"), RadiusScheduler("smoothness"), batches=2)
    own = RadiusScheduler("calibrate", bounds=(1e-3, 10.0))
    runner = run(Slope(lr="auto"), own, batches=2)
    assert [callback for callback in runner.callbacks if isinstance(callback, RadiusScheduler)] == [own]


def test_what_was_found_is_said(monkeypatch):
    said = []
    monkeypatch.setattr("lightning_gluon.callbacks.radius_scheduler.rank_zero_info", said.append)
    torch.manual_seed(0)
    run(Slope(lr="auto"), batches=300)
    assert "radii frozen at hidden" in said[-1]
    with pytest.warns(
        UserWarning, match=r"stopped after 33 % of training while larger radii still .* Radii stay at hidden 0\.0"
    ):
        run(Slope(lr="auto"), batches=20)


def test_pytorch_lightning_trainer():
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return configure_optimizers(self, lr="auto")

    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    runner = other.Trainer(accelerator="cpu", max_steps=4, **quiet)
    runner.fit(Module(), DataLoader(data(), batch_size=4))
    scheduler = next(callback for callback in runner.callbacks if isinstance(callback, RadiusScheduler))
    assert scheduler.control.steps == 4


@pytest.mark.parametrize("callbacks", [[], [RadiusScheduler("calibrate")]])
def test_a_monitor_sees_the_radius_of_the_coming_step(callbacks, tmp_path):
    model = Slope(lr=AUTO_LR if callbacks else "auto")
    monitor = SmoothnessMonitor(every_n_steps=1, same_sample=False)
    fit(
        model,
        loader=Loader(data(batches=30, size=32), 32),
        callbacks=[monitor, *callbacks],
        default_root_dir=str(tmp_path),
    )
    set_after = [lr * radius for lr, radius in model.steps][1:]  # as the next step finds it
    found = [row for row in read_samples(next(tmp_path.rglob("smoothness.jsonl"))) if row["layer"] is None]
    assert len(set(set_after)) > 8
    assert [row["radius"] for row in found[:28]] == [pytest.approx(set_after[row["step"]]) for row in found[:28]]
