"""A run with a RadiusScheduler that stops and goes on is the run that never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gluon.callbacks import RadiusScheduler, SmoothnessMonitor
from tests._slope import Deep, Slope, run
from tests._two_point import Loader, data, differing, fit, gluon, state


@pytest.mark.parametrize(
    ("method", "rule", "at"),
    [
        ("gluon", "calibrate", 12),
        ("gluon-mvr1", "calibrate", 12),
        ("gluon-mvr1", "calibrate", 60),
        ("muon", "calibrate", 12),  # two ramps
        ("muon-mvr", "calibrate", 12),  # of which one needs copies
        ("gluon", "smoothness", 11),
        ("gluon", "momo", 12),
        ("muon", "ngn", 12),
        ("muon", "floor", 12),
    ],
)
def test_resumed_run_equals_the_whole_one(tmp_path: Path, method, rule, at):
    def train(folder, path=None):
        torch.manual_seed(0)
        options = {"start": 0.01} if rule == "calibrate" else None
        scheduler = RadiusScheduler(rule, options=options, every_n_steps=4)
        saver = ModelCheckpoint(tmp_path / folder, every_n_train_steps=at, save_top_k=-1, filename="{step}")
        model = Deep(method) if method.startswith("muon") else Slope(method)
        loader, callbacks = Loader(data(batches=90)), [scheduler, saver]
        runner = fit(model, loader=loader, callbacks=callbacks, enable_checkpointing=True, ckpt_path=path)
        return state(model, gluon(runner)), scheduler

    whole, first = train("whole")
    saved = tmp_path / "whole" / f"step={at}.ckpt"
    again, second = train("again", saved)
    assert not differing(whole, again)
    assert first.radii == second.radii
    assert first.control.steps == second.control.steps == 90
    torch.load(saved, weights_only=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RadiusScheduler("calibrate", options={"share": 0.99}),
        lambda: RadiusScheduler("smoothness", every_n_steps=4),
        lambda: SmoothnessMonitor(every_n_steps=4),
    ],
    ids=["calibrate", "smoothness", "monitor"],
)
def test_a_checkpoint_saved_after_the_fit_resumes_as_well(tmp_path: Path, build):
    def train(folder, epochs, path=None):
        torch.manual_seed(0)
        model, callback = Slope(), build()
        loader, options = Loader(data(batches=15)), {"max_epochs": epochs, "default_root_dir": tmp_path / folder}
        runner = fit(model, loader=loader, callbacks=[callback], ckpt_path=path, **options)
        return state(model, gluon(runner)), callback.state_dict(), runner

    whole, first, _ = train("whole", 2)
    train("part", 1)[2].save_checkpoint(tmp_path / "saved.ckpt")  # after `fit`; the next step's sample is under way
    again, second, _ = train("part", 2, tmp_path / "saved.ckpt")
    assert not differing(whole, again)
    assert first.get("radii") == second.get("radii")
    assert first.get("fits") == second.get("fits")


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
    assert set(saved["measurements"]["Agreement"]["before"]) == {"layer.weight"}
    other = RadiusScheduler("calibrate")
    other.load_state_dict(saved)
    run(Slope(), other, max_steps=2)
    assert other.control.steps == 22


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


def test_radii_by_layer_of_another_model_are_refused():
    scheduler = RadiusScheduler(lambda seen: {"layer.0.weight": 0.5})
    run(Deep("gluon"), scheduler, batches=2)
    other = Deep("gluon")
    other.layer.append(torch.nn.Linear(4, 4, bias=False))
    with pytest.raises(ValueError, match=r"holds 2 radii for group 'hidden', which has 3 parameters: they are another"):
        run(other, scheduler, batches=2)
