"""Recipes on two ranks, as the command line starts them."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests._two_point import free_port

STRATEGIES = (pytest.param("ddp", marks=pytest.mark.slow), "fsdp2")


def start(folder: Path, strategy: str, *files: str) -> list[dict[str, str]]:
    """Run `lightning-gluon fit` with one strategy and return the rows it logged."""
    overlays = [*files, "loggers/csv", f"strategies/{strategy}"]
    command = [sys.executable, "-m", "lightning_gluon", "fit"]
    for name in overlays:
        command += ["-c", f"recipes/{name}.yaml"]
    options = {"max_steps": 4, "limit_val_batches": 2, "val_check_interval": 2, "log_every_n_steps": 1}
    options |= {"enable_progress_bar": "false", "default_root_dir": folder, "logger.init_args.save_dir": folder}
    command += [f"--trainer.{key}={value}" for key, value in options.items()]
    given = {
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "LIGHTNING_GLUON_CACHE": str(folder / "tokens"),
    }
    done = subprocess.run(
        command, env={**os.environ, **given}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = folder.rglob("metrics.csv")
    return list(csv.DictReader(log.read_text().splitlines()))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_language_model_on_two_ranks(tmp_path: Path, strategy: str) -> None:
    rows = start(tmp_path, strategy, "qwen2_5/base", "qwen2_5/tiny", "methods/gluon")
    losses = [float(row["val/loss"]) for row in rows if row.get("val/loss")]
    assert len(losses) == 2 and losses[1] < losses[0] < math.log(512) + 0.1
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_gradients_on_two_ranks(tmp_path: Path, strategy: str) -> None:
    rows = start(tmp_path, strategy, "vit/base", "vit/tiny", "methods/gluon-mvr1")
    assert [row["gluon/gradient_evaluations"] for row in rows if row.get("gluon/gradient_evaluations")][-1] == "7.0"
