"""Samples of a monitored run, read from the file that `SmoothnessMonitor` wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

Sample: TypeAlias = dict[str, Any]  # step, role and layer, and the readings: a number or None
Samples: TypeAlias = list[Sample]

SAMPLE_KEYS = {"step", "role", "layer"}  # of every sample


def read_samples(path: str | Path) -> Samples:
    """Return the samples of a run, ordered by step; the file may lie in a subfolder of the path.

    Args:
        path: A file written by `SmoothnessMonitor`, or a folder with one; of several the newest.

    Returns:
        One dict per line.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file has no samples.
    """
    path = Path(path)
    files = [path]
    if not path.is_file():
        files = sorted(path.rglob("smoothness*.jsonl"), key=_age)
    if not files:
        raise FileNotFoundError(
            f"Expected `smoothness.jsonl` in {str(path)!r}, but there is none. Train with `SmoothnessMonitor`, "
            "for `every_n_steps` of it or longer."
        )
    samples = samples_in(files[-1])
    if not samples:
        raise ValueError(f"{str(files[-1])!r} has no samples yet.")
    return sorted(samples, key=_step_of)


def _age(file: Path) -> float:
    return file.stat().st_mtime


def _step_of(sample: Sample) -> int:
    return sample["step"]


def samples_in(file: Path) -> Samples:
    """Return the samples of a file in its own order; lines that a crash has cut off are passed over."""
    samples = []
    for line in file.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            sample = json.loads(line)
            if isinstance(sample, dict) and sample.keys() >= SAMPLE_KEYS:
                samples.append(sample)
    return samples


def role_samples(samples: Iterable[Sample], role: str) -> Samples:
    """Return the samples of a whole role, without those of its layers."""
    found = []
    for sample in samples:
        if sample["layer"] is None and sample["role"] == role:
            found.append(sample)
    return found


def series(samples: Iterable[Sample], key: str) -> list[float]:
    """Return one reading of all samples; NaN for those that have none."""
    values = []
    for sample in samples:
        value = sample.get(key)
        values.append(math.nan if value is None else value)
    return values
