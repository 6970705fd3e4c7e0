"""A file of samples never ends a training, and a checkpoint never says where it is."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from lightning_gluon.smoothness.plots import samples_in
from lightning_gluon.smoothness.sample_file import SampleFile, check_file_name


def row(step: int) -> dict[str, Any]:
    return {"step": step, "role": "hidden", "layer": None}


def steps(path: Path) -> list[int]:
    return [sample["step"] for sample in samples_in(path)]


def test_a_new_file_takes_a_name_that_is_free(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        file = SampleFile.begin(tmp_path / "run", "smoothness.jsonl", 0, [])
        assert not file.path.exists()  # before the first sample
        file.append([row(1)])
        names.append(file.path.name)
    assert names == ["smoothness.jsonl", "smoothness_2.jsonl", "smoothness_3.jsonl"]
    other = SampleFile.begin(tmp_path, "smoothness.jsonl", 0, [tmp_path / "smoothness.jsonl"])
    assert other.path.name == "smoothness_2.jsonl"


def test_a_resumed_run_goes_on_behind_its_last_sample(tmp_path: Path) -> None:
    first = SampleFile.begin(tmp_path, "smoothness.jsonl", 0, [])
    first.append(map(row, (1, 3, 5, 7)))
    again = SampleFile.begin(tmp_path, "smoothness.jsonl", 5, [])
    again.append([row(5)])
    assert again.path == first.path
    assert steps(again.path) == [1, 3, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["smoothness.jsonl"]


def test_samples_are_never_without_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full while a resumed run leaves out the samples that come again."""
    SampleFile.begin(tmp_path, "smoothness.jsonl", 0, []).append(map(row, (1, 3, 5)))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        SampleFile.begin(tmp_path, "smoothness.jsonl", 3, [])
    assert steps(tmp_path / "smoothness.jsonl") == [1, 3, 5]


def test_a_full_disk_is_one_warning_and_later_samples_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SampleFile.begin(tmp_path, "smoothness.jsonl", 0, [])
    file.append([row(1)])
    whole, real = file.path.read_text(), Path.open

    class Full:
        """A file that takes half of what is written."""

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def write(self, text: str) -> None:
            with real(file.path, "a") as opened:
                opened.write(text[: len(text) // 2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file.append([row(2)])
        file.append([row(3)])
    monkeypatch.undo()
    file.append([row(4)])
    assert [str(warning.message) for warning in caught] == [
        f"Samples of the smoothness cannot be written to {str(file.path)!r} (No space left on device). The training "
        "and its logs go on without them."
    ]
    assert file.path.read_text().startswith(whole)
    assert steps(file.path) == [1, 4]


@pytest.mark.parametrize("kind", ["a file in the way", "read only"])
def test_a_folder_that_cannot_be_written_is_said_at_the_start(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if kind == "read only":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        folder.mkdir(mode=0o500)
    else:
        folder.write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        file = SampleFile.begin(folder, "smoothness.jsonl", 0, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        file.append([row(1)])


@pytest.mark.parametrize("name", ["smoothness.jsonl", "smoothness_2.jsonl", "smoothness_17.jsonl"])
def test_names_that_a_monitor_gives(name: str) -> None:
    assert check_file_name(name) == name


HOSTILE = [
    "../smoothness.jsonl",
    "/etc/passwd",
    "a/smoothness.jsonl",
    "..",
    ".",
    "",
    "~/.bashrc",
    ".bashrc",
    "C:\\smoothness.jsonl",
    "..\\smoothness.jsonl",
    "smoothness.jsonl\n",
    "smoothness.jsonl\x00",
    "smoothness_².jsonl",
    "smoothness.jsonl/..",
    "train.py",
    b"smoothness.jsonl",
    Path("smoothness.jsonl"),
    None,
    3,
    ["smoothness.jsonl"],
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_names_that_it_does_not(name: object) -> None:
    with pytest.raises(ValueError, match="Expected `file` in the saved state of `SmoothnessMonitor` to be a name"):
        check_file_name(name)


def test_lines_are_json(tmp_path: Path) -> None:
    file = SampleFile.begin(tmp_path, "smoothness.jsonl", 0, [])
    file.append(map(row, (1, 2)))
    assert [json.loads(line)["step"] for line in file.path.read_text().splitlines()] == [1, 2]
