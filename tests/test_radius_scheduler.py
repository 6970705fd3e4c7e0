from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from two_point import FLAT, Loader, Memory, Net, data, differing, fit, gluon, state

from lightning_gluon import Gluon, configure_optimizers
from lightning_gluon.calibrate import Calibrate, Observation
from lightning_gluon.callbacks import RadiusScheduler
from lightning_gluon.configure import AUTO_LR
from lightning_gluon.radii import Limits, peak_lr, set_radii_
from lightning_gluon.rules import RULES, Smoothness, Theory, make_rule

# ---------------------------------------------------------------- the arithmetic of calibrate


def ramp(rule: Calibrate, agreements, **given) -> list[float]:
    return [rule(Observation(step=k, agreement=a, **given)) for k, a in enumerate(agreements)]


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.95, 0.97])
def test_growth_and_step_back_follow_the_memory(momentum):
    memory = max(10, 1 / (1 - momentum))
    rule = Calibrate(start=1.0)
    factors = ramp(rule, [None, *[1.0] * 30, *[-1.0] * 200], momentum=momentum)
    assert factors[0] == 1.0
    assert factors[30] / factors[29] == pytest.approx(1 + 1 / memory)  # agreement beyond chance: fast
    steps = [after / before for before, after in pairwise(factors)]
    assert any(step == pytest.approx(1 + 1 / (2 * memory)) for step in steps)  # in between: slow
    assert min(steps) == pytest.approx((1 + 1 / (2 * memory)) ** (-1.5 * memory))
    assert min(steps) == pytest.approx(math.exp(-0.75), rel=0.03)  # the same step back at every momentum
    assert rule.done
    assert factors[-1] == factors[-2]


def test_noise_alone_does_not_stop_the_ramp_early():
    # Agreement of pure noise: under the rule "stop at the first negative average" the median ramp ends after 8 steps.
    lengths, naive = [], []
    for seed in range(40):
        values = torch.randn(400, generator=torch.Generator().manual_seed(seed)).tolist()
        rule, average = Calibrate(start=1e-9), 0.0
        ramp(rule, [None, *values])
        lengths.append(rule.state.seen)
        for k, value in enumerate(values):
            average = 0.8 * average + 0.2 * value
            if k >= 4 and average <= 0:
                naive.append(k)
                break
    assert sorted(naive)[20] < 10
    assert sorted(lengths)[4] > 60


def test_overshoot_is_seen_at_once_on_a_quadratic():
    # f = x^2 / 2 from x = 1 with step s: agreement x_k, negative once the step has jumped over the minimum.
    x, rule, last = 1.0, Calibrate(start=1e-3), None
    for step in range(500):
        agreement = None if last is None else x * last
        scale = rule(Observation(step=step, agreement=agreement))
        last = math.copysign(1.0, x)
        x -= scale * last
    assert rule.done
    assert abs(x) <= rule.state.scale


def test_two_points_stop_before_the_bottom_and_step_nowhere_back():
    rule = Calibrate(start=1.0)
    factors = [rule(Observation(step=0))]
    while not rule.done:  # c_old agrees by 1, curvature 0.01 per unit of s: the best step is at s = 100
        s = factors[-1]
        factors.append(rule(Observation(step=len(factors), agreement=1 - 0.01 * s, reference_agreement=1.0)))
    assert rule.state.reason == "curvature"
    assert factors[-1] == factors[-2]
    assert 100 / 3 < factors[-1] < 100
    single = Calibrate(start=1.0, two_point=False)
    ramp(single, [None, *[1.0] * 50, *[-1.0] * 100], variance_reduced=True)
    assert single.state.reason == "agreement"


def test_a_rising_loss_ends_the_ramp():
    rule = Calibrate(start=1.0)
    for step in range(400):
        noise = 0.01 * math.sin(7 * step)
        loss = 2.3 + noise if step < 100 else 2.3 + noise + 0.02 * (step - 100)
        rule(Observation(step=step, agreement=math.sin(step), loss=loss))
    assert (rule.done, rule.state.reason) == (True, "loss")
    assert 100 < rule.state.seen < 125


def test_share_ends_the_ramp_where_it_stands():
    rule = Calibrate(start=1.0, share=0.1)
    factors = ramp(rule, [None, *[1.0] * 99], total_steps=100)
    assert (rule.done, rule.state.reason) == (True, "share")
    assert factors[-1] == factors[9] < factors[8] * 1.2


def test_overflow_and_standstill_are_no_evidence():
    rule = Calibrate(start=1.0)
    before = ramp(rule, [None, 1.0, math.nan, math.inf])
    assert before[1:] == [before[1]] * 3
    still = Calibrate(start=1.0)  # half-precision weights that do not move yet: it goes on growing
    assert ramp(still, [0.0] * 50)[-1] == pytest.approx(1.05**50)


def test_calibrate_resumes():
    one, other = Calibrate(start=0.1), Calibrate()
    ramp(one, [None, *[1.0] * 20, -0.1])
    other.load_state_dict(one.state_dict())
    assert ramp(one, [-1.0] * 60) == ramp(other, [-1.0] * 60)


@pytest.mark.parametrize("option", [{"start": 0}, {"growth": 1.0}, {"shrink": 0.0}, {"share": 1.5}])
def test_calibrate_refuses(option):
    name = next(iter(option))
    with pytest.raises(ValueError, match=rf"Expected `{name}` to satisfy .* but got {option[name]}"):
        Calibrate(**option)


# ---------------------------------------------------------------- other rules, limits


def test_theory_decays_as_the_papers_do():
    assert [Theory()(Observation(step=k)) for k in (0, 15)] == [1.0, 1 / 8]
    assert Theory()(Observation(step=7, variance_reduced=True)) == pytest.approx(1 / 4)
    assert Theory(power=1.0)(Observation(step=3)) == 0.25
    with pytest.raises(ValueError, match="power > 0, but got 0"):
        Theory(power=0)


def test_smoothness_rule_is_theorem_one_on_the_fit():
    rule = Smoothness(kappa=0.5, samples=2)
    seen = [{"L_hat": 1 + 20 * g, "grad_dual_norm": g, "lr": 0.5} for g in (1.0, 3.0)]
    assert rule(Observation(step=0)) is None
    assert rule(Observation(step=0, layers={"hidden": seen[0]})) == {}
    found = rule(Observation(step=1, layers={"hidden": seen[1]}))
    assert found == pytest.approx({"hidden": 0.5 * 3 / 61 / 0.5})
    other = Smoothness(kappa=0.5, samples=2)
    other.load_state_dict(rule.state_dict())
    third = Observation(step=2, layers={"hidden": seen[0]})
    assert other(third) == rule(third)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kappa": 0}, "kappa > 0, but got 0"),
        ({"per": "block"}, "'role' or 'layer', but got 'block'"),
        ({"samples": 0}, "samples >= 1, but got 0"),
    ],
)
def test_smoothness_rule_refuses(option, message):
    with pytest.raises(ValueError, match=message):
        Smoothness(**option)


def test_limits_by_hand():
    limits = Limits(bounds=(0.1, 10.0), max_growth=2.0, smoothing=0.5)
    assert limits(16.0, current=4.0, base=1.0) == 8.0  # sqrt(4 * 16)
    assert limits(400.0, current=4.0, base=1.0) == 8.0  # sqrt(4 * 400) = 40, at most twice 4
    assert limits(1e-6, current=1e-3, base=1.0) == 0.1
    assert limits(1e6, current=9.0, base=1.0) == 10.0
    assert Limits()(0.0, current=1.0, base=1.0) == 0.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"bounds": (1.0, 0.5)}, r"0 <= low < high, but got \(1.0, 0.5\)"),
        ({"max_growth": 1.0}, "max_growth > 1, but got 1.0"),
        ({"smoothing": 1.0}, "0 <= smoothing < 1, but got 1.0"),
        ({"every_n_steps": 0}, "every_n_steps >= 1, but got 0"),
        ({"freeze_step": 0}, "freeze_step > 0, but got 0"),
        ({"rule": "secant"}, "`rule` to be one of theory, smoothness, calibrate, or a function, but got 'secant'"),
        ({"rule": lambda seen: 1.0, "options": {"start": 1}}, "`options` are for rules given by name"),
    ],
)
def test_constructor_refuses(option, message):
    with pytest.raises(ValueError, match=message):
        RadiusScheduler(**option)


def test_rules_by_name_or_as_they_are():
    assert all(callable(make_rule(name)) for name in RULES)
    with pytest.raises(TypeError, match="a name, a rule or a function, but got float"):
        RadiusScheduler(0.5)


def test_set_radii_by_factor_group_and_layer():
    optimizer = Gluon(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), lr=0.1, method="muon")
    groups = {group["name"]: group for group in optimizer.param_groups}
    base = {name: group["radius"] for name, group in groups.items()}
    set_radii_(optimizer.param_groups, 0.5, base=base, limits=Limits())
    assert {name: group["radius"] for name, group in groups.items()} == {name: r / 2 for name, r in base.items()}
    names = groups["hidden"]["param_names"]
    set_radii_(optimizer.param_groups, {names[0]: 0.25}, base=base, limits=Limits())
    assert groups["hidden"]["radius"] == [0.25, *[0.5] * (len(names) - 1)]
    set_radii_(optimizer.param_groups, {"hidden": 0.125}, base=base, limits=Limits())
    assert groups["hidden"]["radius"] == 0.125
    with pytest.raises(ValueError, match=r"got one of 'heads'\. There are groups hidden"):
        set_radii_(optimizer.param_groups, {"heads": 1.0}, base=base, limits=Limits())
    with pytest.raises(ValueError, match=r"finite radii >= 0, but got -1\.0"):
        set_radii_(optimizer.param_groups, -1.0, base=dict.fromkeys(base, 1.0), limits=Limits())
    with pytest.raises(ValueError, match="Group 'bias' is stepped by AdamW and takes one radius"):
        set_radii_(optimizer.param_groups, {groups["bias"]["param_names"][0]: 1.0}, base=base, limits=Limits())


def test_peak_of_a_schedule():
    assert peak_lr({"lr": 0.1}) == 0.1
    assert peak_lr({"lr": 0.1, "initial_lr": 0.4}) == 0.4
    assert peak_lr({"lr": 0.1, "initial_lr": 0.04, "max_lr": 1.0}) == 1.0


# ---------------------------------------------------------------- in the Trainer


class Slope(pl.LightningModule):
    """mean (W x - A x)^2 / 2, without noise: the loss falls until the step is longer than what is left."""

    def __init__(self, method: str = "gluon", schedule: str = "constant", **options) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.target = torch.eye(4)
        self.options = {"method": method, "schedule": schedule, "lr": 0.1, **FLAT, **options}
        self.steps: list[tuple[float, float]] = []

    def training_step(self, batch, batch_idx):
        return (self.layer(batch[0]) - batch[0] @ self.target).square().mean()

    def on_before_zero_grad(self, optimizer):
        group = self.trainer.optimizers[0].param_groups[0]
        self.steps.append((group["lr"], group["radius"]))

    def configure_optimizers(self):
        return configure_optimizers(self, **self.options)


def run(model, scheduler=None, *, batches: int = 120, **options):
    torch.manual_seed(0)
    callbacks = [scheduler] if scheduler else []
    return fit(model, loader=Loader(data(batches=batches, size=32), 32), callbacks=callbacks, **options)


@pytest.mark.parametrize("method", ["gluon", "muon", "gluon-mvr1", "limuon"])
def test_lr_auto_calibrates_every_method(method):
    torch.manual_seed(0)
    model = Slope(method, lr="auto")
    runner = run(model, batches=400)
    scheduler = next(callback for callback in runner.callbacks if isinstance(callback, RadiusScheduler))
    lrs, radii = zip(*model.steps, strict=True)
    assert set(lrs) == {AUTO_LR}  # the radius is written, never lr
    assert scheduler.rule.done
    reasons = {"gluon": ("agreement", "loss"), "muon": ("agreement", "loss", "share")}
    assert scheduler.rule.state.reason in reasons.get(method, ("curvature", "loss"))
    assert radii[1] < radii[20] < radii[40]
    assert len(set(radii[-100:])) == 1
    assert scheduler._last is None  # nothing is kept after the run


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
        model = Slope(lr="auto", **options)
        runner = run(model, batches=300)
        scheduler = next(callback for callback in runner.callbacks if isinstance(callback, RadiusScheduler))
        found[name] = peak_lr(gluon(runner).param_groups[0]) * scheduler.radii["hidden"]
        assert len({lr for lr, _ in model.steps}) > (1 if options else 0)
    # Without making up for it, the run with a warm-up of 60 of 300 steps would end at a radius several times larger.
    assert all(1 / 3 < found[name] / found["constant"] < 3 for name in found)


def test_line_search_saves_a_start_far_too_large():
    torch.manual_seed(0)
    model = Slope(lr=64.0)
    scheduler = RadiusScheduler("calibrate", options={"line_search": True})
    run(model, scheduler, batches=300)
    assert scheduler.rule.done
    assert float((model.layer.weight - torch.eye(4)).norm()) < 1
    assert max(lr * radius for lr, radius in model.steps[2:6]) < 0.1


def test_line_search_leaves_no_trace():
    # The factor 2^-8 of the first step is all that differs from a run that starts there.
    def weights(options):
        torch.manual_seed(1)
        model = Net(method="gluon", lr=0.5)
        fit(model, callbacks=[RadiusScheduler("calibrate", options=options)], max_steps=2)
        return model

    one, other = weights({"line_search": True}), weights({"start": 2.0**-8})
    assert one.seen == other.seen
    assert torch.equal(torch.stack(one.outputs), torch.stack(other.outputs))
    for key in ("first.1.running_mean", "steps"):
        assert torch.equal(one.state_dict()[key], other.state_dict()[key])


def test_smoothness_rule_in_the_trainer_writes_radii_by_role_and_layer():
    for per in ("role", "layer"):
        scheduler = RadiusScheduler("smoothness", options={"per": per}, every_n_steps=2, max_growth=2.0)
        runner = fit(Net(method="gluon"), callbacks=[scheduler], max_epochs=2)
        hidden = gluon(runner).param_groups[0]["radius"]
        assert hidden != scheduler.base["hidden"]
        assert isinstance(hidden, list) == (per == "layer")


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


def test_freeze_as_a_share_of_the_training():
    seen = []
    fit(Net(method="gluon"), callbacks=[RadiusScheduler(lambda o: seen.append(o.step), freeze_step=0.5)])
    assert seen == [0, 1, 2, 3]  # of 7


def test_layers_are_logged_by_name():
    memory = Memory()
    rule = lambda seen: {"inner.linear.weight": 0.5}  # noqa: E731
    fit(Net(method="gluon"), callbacks=[RadiusScheduler(rule)], logger=memory)
    keys = {key for _, row in memory.rows for key in row if key.startswith("radius/")}
    assert {"radius/inner.linear.weight", "radius/head"} <= keys
    assert "radius/hidden" not in keys


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("method", "rule", "at"),
    [
        ("gluon", "calibrate", 12),
        ("gluon-mvr1", "calibrate", 12),
        ("gluon-mvr1", "calibrate", 60),
        ("gluon", "smoothness", 11),
        ("gluon", "theory", 12),
    ],
)
def test_resumed_run_equals_the_whole_one(tmp_path: Path, method, rule, at):
    def train(folder, path=None):
        torch.manual_seed(0)
        options = {"options": {"start": 0.01}} if rule == "calibrate" else {"every_n_steps": 4}
        scheduler = RadiusScheduler(rule, **options)
        saver = ModelCheckpoint(tmp_path / folder, every_n_train_steps=at, save_top_k=-1, filename="{step}")
        model = Slope(method)
        loader, callbacks = Loader(data(batches=90)), [scheduler, saver]
        runner = fit(model, loader=loader, callbacks=callbacks, enable_checkpointing=True, ckpt_path=path)
        return state(model, gluon(runner)), scheduler

    whole, first = train("whole")
    saved = tmp_path / "whole" / f"step={at}.ckpt"
    again, second = train("again", saved)
    assert not differing(whole, again)
    assert first.radii == second.radii
    assert first.steps == second.steps == 90
    torch.load(saved, weights_only=True)


def test_state_survives_an_exception():
    class Broken(Slope):
        def training_step(self, batch, batch_idx):
            if batch_idx == 20:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    scheduler = RadiusScheduler("calibrate")
    with pytest.raises(ZeroDivisionError):
        run(Broken(), scheduler)
    saved = scheduler.state_dict()
    assert saved["steps"] == 20
    assert set(saved["last"]["before"]) == {"layer.weight"}
    other = RadiusScheduler("calibrate")
    other.load_state_dict(saved)
    run(Slope(), other, max_steps=2)
    assert other.steps == 22


def test_lr_auto_resumes(tmp_path: Path):
    def train(folder, path=None):
        torch.manual_seed(0)
        saver = ModelCheckpoint(tmp_path / folder, every_n_train_steps=20, save_top_k=-1, filename="{step}")
        model = Slope(lr="auto")
        loader = Loader(data(batches=60))
        runner = fit(model, loader=loader, callbacks=[saver], enable_checkpointing=True, ckpt_path=path)
        return state(model, gluon(runner))

    whole = train("whole")
    assert not differing(whole, train("again", tmp_path / "whole" / "step=20.ckpt"))


def test_second_fit_of_the_same_callback_keeps_the_radii():
    scheduler = RadiusScheduler("calibrate")
    run(Slope(), scheduler, batches=300)
    model = Slope()
    run(model, scheduler, batches=5)
    assert {radius for _, radius in model.steps} == {scheduler.radii["hidden"]}


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
    assert scheduler.rule.state.seen > 20


def refused(error, message, model, *arguments, trainer=None, **options):
    with pytest.raises(error, match=message):
        fit(model, callbacks=[RadiusScheduler(*arguments, **options)], max_steps=2, **(trainer or {}))


def test_start_refuses():
    search = {"options": {"line_search": True}}
    refused(ValueError, "'smoothness' needs the gradient of the same sample at two points", Manual(), "smoothness")
    refused(ValueError, "`line_search` needs a second look at a batch", Manual(), **search)
    half = {"precision": "bf16-true"}
    refused(ValueError, "too small for half-precision weights", Net(method="gluon"), trainer=half, **search)
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


def test_what_was_found_is_said(monkeypatch):
    said = []
    monkeypatch.setattr("lightning_gluon.callbacks.radius_scheduler.rank_zero_info", said.append)
    torch.manual_seed(0)
    run(Slope(lr="auto"), batches=300)
    assert "radii frozen at hidden" in said[-1]
    with pytest.warns(UserWarning, match="reached its share of the training while larger radii still paid off"):
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
    assert scheduler.steps == 4
