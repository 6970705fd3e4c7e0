"""The file of a run's samples, one JSON object a line; a failure to write never ends a training."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lightning_gluon.smoothness.plots import samples_in

SampleRow: TypeAlias = Mapping[str, Any]
FIRST = "smoothness.jsonl"


class SampleFile:
    """Samples that are appended as they come; the first failure is a warning, and every sample tries again.

    Args:
        path: The file.

    Example:
        >>> file = SampleFile(Path("/no/such/folder/smoothness.jsonl"))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     file.append([{"step": 1}])
        ...     file.append([{"step": 2}])
        >>> len(caught)
        1
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned = False
        self._cut = False  # a line may have been written in part

    @classmethod
    def begin(cls, folder: Path, name: str, steps: int, taken: Collection[Path]) -> SampleFile:
        """Continue the file of a resumed run behind its last sample, or begin one that no other run or monitor has.

        Args:
            folder: Folder of the run.
            name: Name of the file that was written to so far.
            steps: Optimizer steps taken so far; samples that will be taken again are left out.
            taken: Files of other monitors.

        Returns:
            The file; if the folder cannot be written to, a warning says so.
        """
        file = cls(folder / name)
        file._try(lambda: file._begin(steps, taken))
        return file

    def append(self, rows: Iterable[SampleRow]) -> None:
        """Write samples at the end.

        Args:
            rows: Plain values by key.
        """
        text = "".join(json.dumps(row) + "\n" for row in rows)

        def write() -> None:
            start = "\n" if self._cut else ""
            self._cut = True
            with self.path.open("a") as opened:
                opened.write(start + text)
            self._cut = False

        self._try(write)

    def _begin(self, steps: int, taken: Collection[Path]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if steps and self.path not in taken and self._continue(steps):
            return
        folder, count = self.path.parent, 2
        while self.path.exists() or self.path in taken:
            self.path, count = folder / f"smoothness_{count}.jsonl", count + 1
        self.path.touch()  # now it is known whether it can be written
        self.path.unlink()

    def _continue(self, steps: int) -> bool:
        """Leave out the samples that are to come again; return whether there are others."""
        if not self.path.exists():
            return False
        kept = [sample for sample in samples_in(self.path) if sample["step"] < steps]
        if not kept:
            return False
        other = self.path.with_suffix(".part")  # the samples are never without a whole file
        other.write_text("".join(json.dumps(sample) + "\n" for sample in kept))
        os.replace(other, self.path)
        return True

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"Samples of the smoothness cannot be written to {str(self.path)!r} ({error.strerror or error}). "
                    "The training and its logs go on without them.",
                    stacklevel=2,
                )


def check_file_name(name: object) -> str:
    """Return a name that a monitor gives its file, or raise: the word of a checkpoint is never a path.

    Args:
        name: The name.

    Returns:
        The name.

    Raises:
        ValueError: If it is another one.

    Example:
        >>> check_file_name("smoothness_2.jsonl")
        'smoothness_2.jsonl'
    """
    if not isinstance(name, str) or not re.fullmatch(r"smoothness(_[0-9]{1,9})?\.jsonl", name):
        raise ValueError(
            f"Expected `file` in the saved state of `SmoothnessMonitor` to be a name such as {FIRST!r}, but got "
            f"{name!r}: the checkpoint was not written by a monitor, or is damaged."
        )
    return name
