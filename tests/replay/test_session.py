"""Several consumers, one session: one wrapper, one pass, one copy, one state, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_gluon.callbacks import RadiusScheduler, SmoothnessMonitor
from lightning_gluon.replay.kept import Kept
from lightning_gluon.replay.session import Session
from lightning_gluon.smoothness.readings import Pair
from tests._two_point import FLAT, Bare, Net, SaveAt, data, differing, fit, gluon, state


class Wants(pl.Callback):
    """Want the next step's pairs at given steps, and keep what is shown."""

    def __init__(self, every: int = 1, *, again: bool = True, only: str = "") -> None:
        self.every, self.again, self.only = every, again, only
        self.shown: list[dict[str, Pair]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.steps = 0

    def on_fit_start(self, runner: pl.Trainer, module: pl.LightningModule) -> None:
        self.session = Session.of(runner)

    def on_before_optimizer_step(self, runner: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        layers = [layer for layer in gluon(runner).layers() if self.only in layer.name]
        asked = self.steps > 0 and self.steps % self.every == 0
        pairs = self.session.pairs(layers) if asked else []
        copies = {p.layer.name: Pair(p.layer, p.grad.clone(), p.weight_before.clone(), p.grad_before, p.new, p.old)
                  for p in pairs}  # fmt: skip
        self.shown.append(copies)
        self.weights.append({name: value.detach().clone() for name, value in module.named_parameters()})
        self.steps += 1
        if self.steps % self.every == 0:
            self.session.want(layers, again=self.again)


class Counted(Bare):
    calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        type(self).calls += 1  # not the module's own: second passes count here
        return super().training_step(batch, batch_idx)


def calls(*consumers: pl.Callback, **options: Any) -> int:
    Counted.calls = 0
    fit(Counted(**options), callbacks=list(consumers))
    return Counted.calls


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1", "gluon-igt"])
def test_what_is_shown_is_the_last_iterate(method: str) -> None:
    wants = Wants()
    fit(Net(method=method), callbacks=[wants])
    assert wants.shown[0] == {}
    for k in range(1, 7):
        assert set(wants.shown[k]) == set(wants.weights[k])
        for name, pair in wants.shown[k].items():
            assert torch.equal(pair.weight_before, wants.weights[k - 1][name])
            assert k == 1 or torch.equal(pair.grad_before, wants.shown[k - 1][name].grad)
            assert pair.old is not None
            assert (pair.new is not None) == (method == "gluon-igt")


@pytest.mark.parametrize("method", ["gluon", "gluon-igt"])
def test_at_lr_0_the_gradient_there_is_the_gradient_here(method: str) -> None:
    wants = Wants()
    fit(Net(method=method, lr=0.0), callbacks=[wants], accumulate_grad_batches=2)
    assert len(wants.shown) == 4
    for shown in wants.shown[1:]:
        assert all(torch.equal(pair.old, pair.grad) for pair in shown.values())


def test_two_consumers_share_one_pass() -> None:
    alone = calls(method="gluon")
    assert calls(Wants(), method="gluon") - alone == 6
    assert calls(Wants(), Wants(), method="gluon") - alone == 6
    assert calls(Wants(2), Wants(3), method="gluon") - alone == 4  # steps 2, 3, 4 and 6
    assert calls(Wants(again=False), method="gluon") - alone == 0


def test_a_method_with_two_gradients_needs_no_pass_of_its_own() -> None:
    alone = calls(method="gluon-mvr1")
    assert alone == 13
    assert calls(Wants(), SmoothnessMonitor(every_n_steps=2, save=False), method="gluon-mvr1") == alone


def test_consumers_are_shown_what_they_wanted_alone() -> None:
    both, alone = [Wants(2, only="last"), Wants(3)], [Wants(2, only="last"), Wants(3)]
    for consumers in (both, alone[:1], alone[1:]):
        torch.manual_seed(1)
        fit(Net(method="gluon"), callbacks=list(consumers))
    for one, other in zip(both, alone, strict=True):
        assert [set(shown) for shown in one.shown] == [set(shown) for shown in other.shown]
        for shown, expected in zip(one.shown, other.shown, strict=True):
            assert all(torch.equal(pair.old, expected[name].old) for name, pair in shown.items())


@pytest.mark.parametrize("method", ["gluon", "muon", "gluon-mvr1", "gluon-igt"])
def test_a_run_that_is_looked_at_is_the_same_run(method: str) -> None:
    ends = []
    for consumers in ([], [Wants(), Wants(2, only="first")]):
        torch.manual_seed(1)
        model = Net(method=method)
        runner = fit(model, callbacks=list(consumers), accumulate_grad_batches=2, max_epochs=2)
        ends.append({**state(model, gluon(runner)), "rng": torch.get_rng_state()})
    assert differing(*ends) == []


def copies(session: Session) -> int:
    return len(session._kept.weights)


@pytest.mark.parametrize(("method", "expected"), [("gluon", 8), ("gluon-mvr1", 0), ("gluon-igt", 0)])
def test_nothing_is_copied_that_the_optimizer_keeps(method: str, expected: int) -> None:
    wants = Wants()
    fit(Net(method=method), callbacks=[wants])
    assert copies(wants.session) == expected
    rebuilt = Wants()
    fit(Net(method="gluon-mvr1", reference="step"), callbacks=[rebuilt])
    assert copies(rebuilt.session) == 8  # it keeps a step, from which the weights come out rounded


def test_the_session_is_first_and_there_is_one() -> None:
    wants, monitor = Wants(), SmoothnessMonitor(every_n_steps=2, save=False)
    scheduler = RadiusScheduler("smoothness", every_n_steps=2)
    runner = fit(Net(method="gluon-mvr1"), callbacks=[wants, monitor, scheduler])
    kinds = [type(callback).__name__ for callback in runner.callbacks]
    assert kinds == ["Session", "VarianceReduction", "Wants", "RadiusScheduler", "SmoothnessMonitor", "PortableState"]
    runner.fit(Net(method="gluon-mvr1"), torch.utils.data.DataLoader(data(), batch_size=4))
    assert [type(callback).__name__ for callback in runner.callbacks] == kinds


def test_a_plain_run_has_no_session() -> None:
    runner = fit(Net(method="gluon"), callbacks=[RadiusScheduler("calibrate")])
    assert not any(isinstance(callback, Session) for callback in runner.callbacks)


@pytest.mark.parametrize("fails", [False, True])
def test_the_wrapper_is_taken_off(fails: bool) -> None:
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if fails and batch_idx == 4:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    wants = Wants()
    runner = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[wants],
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    model, loader = Fails(method="gluon"), torch.utils.data.DataLoader(data(), batch_size=4)
    if fails:
        with pytest.raises(ZeroDivisionError):
            runner.fit(model, loader)
    else:
        runner.fit(model, loader)
    assert "training_step" not in vars(runner.strategy)
    assert not gluon(runner)._optimizer_load_state_dict_pre_hooks
    assert not wants.session._running


def test_a_wrapper_of_somebody_elses_stays() -> None:
    def foreign(*args: Any, **kwargs: Any) -> Any:
        heard.append(1)
        return inner(*args, **kwargs)

    class Wraps(pl.Callback):
        def setup(self, runner: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
            nonlocal inner
            inner = runner.strategy.training_step
            runner.strategy.training_step = foreign

    heard: list[int] = []
    inner: Any = None
    runner = fit(Net(method="gluon"), callbacks=[Wraps(), Wants()])
    assert len(heard) == 13
    assert vars(runner.strategy)["training_step"] is foreign


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1", "gluon-igt"])
def test_a_resumed_session_shows_the_same(method: str, tmp_path: Path) -> None:
    def run(path: Path | None, callbacks: list[pl.Callback]) -> list[dict[str, Pair]]:
        torch.manual_seed(1)
        wants = Wants(2)
        wants.steps = 0 if path is None else 2
        fit(Net(dropout=0.0, method=method, **FLAT), callbacks=[wants, *callbacks], ckpt_path=path)
        return wants.shown

    path = tmp_path / "part.ckpt"
    whole = run(None, [SaveAt(path, 0, 1)])
    saved = torch.load(path, weights_only=True)["optimizer_states"][0]["kept"]
    assert len(saved["wanted"]) == 8
    assert len(saved["weights"]) == (8 if method == "gluon" else 0)
    again = run(path, [])
    assert len(again) == len(whole) - 2
    for expected, shown in zip(whole[2:], again, strict=True):
        assert set(expected) == set(shown)
        for name, pair in shown.items():
            assert torch.equal(pair.old, expected[name].old)
            assert torch.equal(pair.weight_before, expected[name].weight_before)
            assert torch.equal(pair.grad_before, expected[name].grad_before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("weights"), "`kept` in the saved state of the optimizer to hold again, gradients"),
        (lambda saved: saved["weights"].update({"last.weight": torch.zeros(2)}), r"'last.weight' .* shape \(3, 8\)"),
        (lambda saved: saved["gradients"].update({"last.weight": "text"}), "'last.weight' .*, but got str"),
    ],
)
def test_a_damaged_checkpoint_is_named(change: Any, message: str) -> None:
    from lightning_gluon import Gluon

    model = Net()
    optimizer = Gluon(model, lr=0.1)
    kept = Kept()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    kept.keep(model.parameters(), model.parameters())
    saved = kept.saved(optimizer)
    assert Kept.load(optimizer, saved).wanted == kept.wanted
    change(saved)
    with pytest.raises(ValueError, match=message):
        Kept.load(optimizer, saved)


def test_a_session_without_an_optimizer_says_so() -> None:
    with pytest.raises(RuntimeError, match="but there is none"):
        Session().want([])
