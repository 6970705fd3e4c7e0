"""Resume inside an epoch and inside an accumulation window, and after the process was killed: bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests._two_point import Loader, Net, SaveAt, data, differing, fit, gluon, state

ONE_GRADIENT = ("gluon-igt", "gluon-ema-nesterov", "gluon-anchor")
METHODS = {
    "copy": {"method": "gluon-mvr1", "reference": "copy"},
    "step": {"method": "gluon-mvr1", "reference": "step"},
    "step8": {"method": "gluon-mvr2", "reference": "step8"},
    "igt": {"method": "gluon-igt"},
    "average": {"method": "gluon-ema-nesterov"},
    "anchor": {"method": "gluon-anchor", "ramp": 1.0},
    "damped": {"method": "gluon-mvr2", "gamma": 0.3},
    "mvr3 and theory": {"method": "gluon-mvr3", "schedule": "theory", "lr": 0.2},
}


def run(options: dict[str, Any], **given: Any) -> tuple[dict[str, torch.Tensor], int]:
    torch.manual_seed(1)
    model = Net(dropout=0.0, **options)
    runner = fit(model, loader=Loader(data()), max_epochs=2, gradient_clip_val=0.5, **given)
    return state(model, gluon(runner)), gluon(runner).gradient_evaluations


# Seven batches in windows of three: 2 ends a window, 0, 3 and 4 lie inside one.
@pytest.mark.parametrize("batch", [2, 3, 4])
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_resume_is_exact(options: dict[str, Any], batch: int, tmp_path: Path) -> None:
    path = tmp_path / "part.ckpt"
    whole = run(options, accumulate_grad_batches=3, callbacks=[SaveAt(path, 1, batch)])
    resumed = run(options, accumulate_grad_batches=3, ckpt_path=path)
    assert differing(whole[0], resumed[0]) == []
    assert whole[1] == resumed[1] == (6 if options["method"] in ONE_GRADIENT else 11)


def test_resume_inside_the_first_window(tmp_path: Path) -> None:
    path = tmp_path / "part.ckpt"
    whole = run(METHODS["copy"], accumulate_grad_batches=3, callbacks=[SaveAt(path, 0, 0)])
    assert differing(whole[0], run(METHODS["copy"], accumulate_grad_batches=3, ckpt_path=path)[0]) == []


def test_window_is_saved_only_inside_one_and_loads_safely(tmp_path: Path) -> None:
    paths = {batch: tmp_path / f"{batch}.ckpt" for batch in (2, 4, 6)}
    run(METHODS["copy"], accumulate_grad_batches=3, callbacks=[SaveAt(path, 1, b) for b, path in paths.items()])
    saved = {b: torch.load(path, weights_only=True)["optimizer_states"][0] for b, path in paths.items()}
    assert "window" not in saved[2]
    assert "window" not in saved[6]  # the last, partial window was stepped
    assert saved[4]["window"]["gradients"].keys() == saved[4]["window"]["references"].keys()
    assert len(saved[4]["window"]["gradients"]) == 8


def test_without_the_window_the_resumed_run_differs(tmp_path: Path) -> None:
    """What the saved window is for: Lightning alone forgets the gradients accumulated so far."""
    path = tmp_path / "part.ckpt"
    whole = run(METHODS["copy"], accumulate_grad_batches=3, callbacks=[SaveAt(path, 1, 4)])
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["optimizer_states"][0]["window"]
    torch.save(checkpoint, path)
    assert differing(whole[0], run(METHODS["copy"], accumulate_grad_batches=3, ckpt_path=path)[0]) != []


# ---------------------------------------------------------------- killed


class KillAt(pl.Callback):
    """End the process as the kernel would, without a chance to clean up."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.when = (epoch, batch)

    def on_train_batch_start(self, runner: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if (runner.current_epoch, batch_idx) == self.when:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(folder: Path) -> None:
    checkpoints = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
    run(METHODS["step"], accumulate_grad_batches=2, enable_checkpointing=True, callbacks=[checkpoints, KillAt(1, 3)])


def test_killed_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # this tree's package, whatever is installed
    child = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, env=here, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    whole = run(METHODS["step"], accumulate_grad_batches=2)
    resumed = run(METHODS["step"], accumulate_grad_batches=2, ckpt_path=tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5
    assert differing(whole[0], resumed[0]) == []
    assert whole[1] == resumed[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_until_killed(Path(sys.argv[1]))
