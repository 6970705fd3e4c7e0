"""Training goes on from checkpoints: bit for bit over the same ranks, and as one process does over others."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests._two_point import free_port
from tests.ranks import _checkpoints
from tests.ranks._gloo import Ranks
from tests.ranks._gradients import Case
from tests.ranks._training import Run, far, fit, fit_all

CASES = [Case("gluon"), Case("muon"), Case("gluon-mvr2"), Case("limuon", {"rank": 4, "reference": "step8"})]
SAVED, STEPS = 3, 6
KILLS = int(os.environ.get("KILLS", "2"))
CLOSE = 1e-11  # in fp64, over other numbers of ranks; measured: 1e-13
EXACT = {"orthogonalizer": "svd", "noise_floor": 0.0}


@pytest.mark.parametrize("full", [False, True], ids=["sharded", "full"])
def test_torchs_own_state_dicts(two_ranks: Ranks, full: bool) -> None:
    for case in CASES if full else CASES[-1:]:
        for found in two_ranks.call(_checkpoints.resumed, case, "fsdp2", full):
            assert found["differing"] == [], case
            assert full or "DTensor" in found["kinds"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp", "tp", "fsdp+tp"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_torchs_own_state_dicts_of_every_strategy(two_ranks: Ranks, case: Case, strategy: str) -> None:
    for full in (False, True):
        for found in two_ranks.call(_checkpoints.resumed, case, strategy, full):
            assert found["differing"] == []


def train(ranks: Ranks, run: Run) -> dict[str, np.ndarray]:
    return fit(run) if run.strategy == "one" else ranks.call(fit_all, [run])[0][0]


def goes_on(ranks: dict[int, Ranks], run: Run, sizes: tuple[int, int], other: str, path: str) -> float:
    """Save on some ranks, load on others under another strategy; return how far that ends from the whole training."""
    saved, loaded = sizes
    straight = train(ranks[saved], replace(run, steps=STEPS))
    train(ranks[saved], replace(run, steps=SAVED, save=(path, SAVED)))
    after = train(ranks[loaded], replace(run, strategy=other, steps=STEPS, load=path))
    return far(after, straight)


@pytest.mark.parametrize("sharded", [True, False], ids=["folder", "file"])
def test_the_same_ranks_go_on_bit_for_bit(two_ranks: Ranks, tmp_path: Path, sharded: bool) -> None:
    run = Run("fsdp2", "gluon-mvr1", {"reference": "step8"}, sharded=sharded)
    assert goes_on({2: two_ranks}, run, (2, 2), "fsdp2", str(tmp_path / "saved.ckpt")) == 0


PLACES = [("one", 1), ("ddp", 2), ("fsdp2", 2), ("fsdp2", 4)]
MOVES = [
    (saved, loaded, sharded)
    for (saved, loaded), sharded in itertools.product(itertools.product(PLACES, PLACES), [True, False])
    if not sharded or saved[0] == loaded[0] == "fsdp2"  # a folder is for sharded ones alone
]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gluon", "limuon"])
@pytest.mark.parametrize(("saved", "loaded", "sharded"), MOVES)
def test_checkpoints_move_between_strategies(
    two_ranks: Ranks, four_ranks: Ranks, tmp_path: Path, saved: tuple, loaded: tuple, sharded: bool, method: str
) -> None:
    options = {**EXACT, "rank": 4} if method == "limuon" else EXACT
    run = Run(saved[0], method, options, sharded=sharded, double=True)
    ranks = {1: two_ranks, 2: two_ranks, 4: four_ranks}
    distance = goes_on(ranks, run, (saved[1], loaded[1]), loaded[0], str(tmp_path / "saved.ckpt"))
    assert distance <= (0 if saved == loaded else CLOSE)


# ------------------------------------------------------------------------------------------------ kill -9 and resume


def start(folder: Path, *options: str) -> subprocess.Popen:
    """Start `lightning-gluon fit` on two ranks that save after every step."""
    arguments = f"{{dirpath: {folder}, every_n_train_steps: 1, save_last: true}}"
    saver = f"{{class_path: ModelCheckpoint, init_args: {arguments}}}"
    files = ("qwen2_5/base", "qwen2_5/tiny", "methods/gluon", "loggers/csv", "strategies/fsdp2")
    command = [sys.executable, "-m", "lightning_gluon", "fit"]
    for name in files:
        command += ["-c", f"recipes/{name}.yaml"]
    trainer = {"max_steps": 30, "limit_val_batches": 0, "enable_progress_bar": "false", "callbacks+": saver}
    trainer |= {"logger.init_args.save_dir": folder, "log_every_n_steps": 1}
    command += [f"--trainer.{key}={value}" for key, value in trainer.items()]
    given = {**os.environ, "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    given["LIGHTNING_GLUON_CACHE"] = str(folder.parent / "tokens")
    return subprocess.Popen([*command, *options], env=given, stderr=subprocess.PIPE, text=True, start_new_session=True)


def last(folder: Path) -> Path | None:
    """Return the newest whole checkpoint: its metadata is written in the end."""
    whole = [one for one in folder.glob("*.ckpt") if (one / "meta.pt").exists() and (one / ".metadata").exists()]
    return max(whole, key=lambda one: (one / "meta.pt").stat().st_mtime, default=None)


@pytest.mark.slow
@pytest.mark.timeout(600 + 120 * KILLS)
@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_killed_trainings_go_on(tmp_path: Path, method: str) -> None:
    """Kill both ranks at a random moment, go on from the last whole checkpoint, and end with the same bits."""
    run = Run("fsdp2", method, steps=8, trainer={"enable_checkpointing": True})
    ranks, moments = Ranks(2), random.Random(0)
    ranks.call(fit_all, [run], timeout=300)  # what takes time only once
    straight = ranks.attempt(_checkpoints.fit_and_save, run, str(tmp_path / "straight"), timeout=300)
    assert straight[0].error is None, straight[0].trace
    trials, kept = 0, []
    while len(kept) < KILLS:
        trials += 1
        folder = tmp_path / str(trials)
        moment = moments.uniform(0, straight[0].seconds)
        killed = ranks.attempt(_checkpoints.fit_and_save, run, str(folder), timeout=moment)
        found = last(folder)
        if found is None or not any(one.error for one in killed):
            continue  # before there was a checkpoint, or after the last step
        kept.append(found.stem)
        for weights in ranks.call(fit_all, [replace(run, load=str(found))]):
            assert far(weights[0], straight[0].value) == 0, (kept, moment)
        shutil.rmtree(folder)
    ranks.close()
    print(f"{len(kept)} of {trials} kills were between checkpoints; all went on: {', '.join(kept)}")


@pytest.mark.slow
@pytest.mark.timeout(600 + 600 * KILLS)
def test_killed_ranks_go_on(tmp_path: Path) -> None:
    """Kill both ranks at some moment, resume from the last whole checkpoint, and end where an unharmed run does."""
    straight = start(tmp_path / "straight")
    assert straight.wait(600) == 0, straight.stderr
    for trial in range(KILLS):
        folder = tmp_path / str(trial)
        killed = start(folder)
        while last(folder) is None and killed.poll() is None:
            time.sleep(0.2)
        time.sleep(0.13 * trial)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        kept = last(folder)
        assert kept is not None
        resumed = start(folder, f"--ckpt_path={kept}")
        assert resumed.wait(600) == 0, resumed.stderr
        assert weights(folder) == weights(tmp_path / "straight")
        shutil.rmtree(folder)


def weights(folder: Path) -> dict[str, bytes]:
    """Return what the last checkpoint holds, tensor by tensor."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    (folder / "whole").mkdir(exist_ok=True)
    target = folder / "whole" / "state.pt"
    kept = last(folder)
    assert kept is not None
    dcp_to_torch_save(kept, target)
    state = torch.load(target, weights_only=False)["state_dict"]
    return {name: value.numpy().tobytes() for name, value in state.items() if isinstance(value, torch.Tensor)}
