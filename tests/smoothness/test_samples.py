"""Samples read back from a run's file."""

from __future__ import annotations

import json
import math
import os

import pytest

from lightning_gluon.smoothness.samples import read_samples, role_samples, samples_in, series

ROWS = [{"step": step, "role": "hidden", "layer": layer, "L_hat": 2.0} for step in (4, 0) for layer in (None, "a")]


def write(path, rows, end=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def test_samples_come_in_the_order_of_their_steps(tmp_path):
    file = write(tmp_path / "deep" / "smoothness.jsonl", ROWS)
    for path in (tmp_path, file, str(file)):
        assert [sample["step"] for sample in read_samples(path)] == [0, 0, 4, 4]
    assert samples_in(file) == ROWS


def test_the_newest_file_of_a_folder_is_read(tmp_path):
    old, new = write(tmp_path / "smoothness.jsonl", ROWS), write(tmp_path / "smoothness_2.jsonl", ROWS[:1])
    os.utime(old, (1, 1))
    assert read_samples(tmp_path) == ROWS[:1]
    os.utime(new, (0, 0))
    assert len(read_samples(tmp_path)) == 4


def test_lines_that_a_crash_cut_off_are_passed_over(tmp_path):
    file = write(tmp_path / "smoothness.jsonl", ROWS, '{"step": 5, "ro')
    assert samples_in(file) == ROWS
    assert samples_in(write(file, [[1], {"step": 3}])) == []


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Expected `smoothness.jsonl` in .*Train with `SmoothnessMonitor`"):
        read_samples(tmp_path)
    (tmp_path / "smoothness.jsonl").touch()
    with pytest.raises(ValueError, match="has no samples yet"):
        read_samples(tmp_path)


def test_columns_of_a_role():
    assert [sample["layer"] for sample in role_samples(ROWS, "hidden")] == [None, None]
    assert role_samples(ROWS, "head") == []
    values = series([{"a": 1.0}, {"a": None}, {}], "a")
    assert values[0] == 1.0
    assert all(math.isnan(value) for value in values[1:])
