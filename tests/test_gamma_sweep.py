"""Scripts about the second gradient: which runs they ask for, what a second call does, what their tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gamma_sweep, low_rank_carry, second_gradient, small_tasks

LOSSES = {0.0: 0.5, 0.25: 0.3, 1.0: 0.6}


def test_the_sweep_runs_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def train(task: Any, options: dict[str, Any], *, steps: int, **_: Any) -> dict[str, Any]:
        asked.append((options["gamma"], options["lr"], steps))
        loss = 0.2 if steps == 20 else LOSSES.get(options["gamma"], 0.4)
        return {"loss": loss + options["lr"], "seconds": 1.0}

    monkeypatch.setattr(small_tasks, "train", train)
    monkeypatch.setattr(gamma_sweep, "task", lambda folder: "images")
    command = ["--steps", "10", "--output", str(tmp_path / "sweep.jsonl")]
    gamma_sweep.main([*command, "--rates", "0.01"])
    assert len(asked) == 9 and asked[0] == (0.0, 0.01, 10) and asked[-1] == (0.0, 0.01, 20)
    gamma_sweep.main([*command, "--rates", "0.01", "0.02"])
    assert len(asked) == 18 and {lr for _, lr, _ in asked[9:]} == {0.02}
    page = (tmp_path / "sweep.md").read_text().splitlines()
    assert page[5] == "| 0.25 | 10 | 20 | 0.3100 | 0.3200 | 0.3100 | 0.0854 |"
    assert page[-1] == "| 0.0 | 20 | 20 | 0.2100 | 0.2200 | 0.2100 |  |"  # at equal gradients


def test_the_table_of_readings_leaves_out_seeds_that_lack_a_row() -> None:
    rows = list(second_gradient.ROWS)
    runs = [{"task": "t", "lr": 0.01, "row": row, "seed": 0, "loss": float(place)} for place, row in enumerate(rows)]
    runs[0] |= {"sd_to_sigma": 0.05, "turning": 0.5}
    lone = {"task": "t", "lr": 0.01, "row": rows[0], "seed": 1, "loss": 100.0, "sd_to_sigma": 1.0, "turning": 1.0}
    line = second_gradient.table([*runs, lone]).splitlines()[3]
    assert line == "| t | 0.01 | 0.050 | 0.500 | 0.000 | 1.000 | 2.000 | 3.000 |"


def test_ranks_go_where_the_energy_is() -> None:
    energy = {"steep": torch.tensor([0.97, 0.01, 0.01, 0.01]), "flat": torch.full((4,), 0.25)}
    ranks = low_rank_carry.shared_out(energy, {"steep": (4, 4), "flat": (4, 4)}, 2)
    assert ranks == {"steep": 1, "flat": 3}


def test_a_kept_subspace_finds_what_a_fresh_one_misses() -> None:
    """A spectrum without a gap: the right factor of the last step is a better start than noise."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 60, generator=generator)
    torch.manual_seed(0)
    fresh, kept = (low_rank_carry.Carry({"w": 4}, 0, keeps=keeps) for keeps in (False, True))
    for _ in range(5):
        fresh("w", matrix)
        kept("w", matrix)
    best = torch.linalg.svdvals(matrix)[4:].norm() / matrix.norm()
    assert best <= kept.errors[-1] < fresh.errors[-1]
