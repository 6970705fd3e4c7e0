"""Results as JSON Lines: one row per run, written at once, with a row for the machine and its versions before them.

    {"kind": "environment", "date": "2026-11-24", "torch": "2.14.1", ...}
    {"kind": "run", "method": "gluon", "seed": 0, "loss": 1.55, ...}

Rows are appended and never changed. A later run of the same thing is another row; `Journal.latest` picks the last one.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

__all__ = ["Journal", "environment", "read"]

Row = dict[str, Any]


class Journal:
    """A file of results.

    Args:
        path: The file; it is made with its folder when the first row is appended.

    Raises:
        ValueError: If a line of the file is no row; it is named.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     journal = Journal(Path(folder) / "step.jsonl")
        ...     row = journal.append("run", method="gluon", seconds=0.1)
        ...     [row["kind"] for row in read(journal.path)]
        ['environment', 'run']
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read(path)
        self._machine_is_written = False

    def of(self, kind: str) -> list[Row]:
        """Return the rows of a kind without the word that names it, in the order in which they were written."""
        return [_content(row) for row in self.rows if row["kind"] == kind]

    def find(self, kind: str, **wanted: Any) -> Row | None:
        """Return the first row of a kind that holds these values; `None` if there is none."""
        return next((row for row in self.of(kind) if wanted.items() <= row.items()), None)

    def latest(self, kind: str, *keys: str) -> list[Row]:
        """Return the last row for every combination of values under `keys`.

        Args:
            kind: Kind of the rows.
            keys: Names whose values identify what was run; without any, the last row alone is returned.

        Returns:
            Rows in the order in which their combinations first occurred.
        """
        found = {tuple(str(row.get(key)) for key in keys): row for row in self.of(kind)}
        return list(found.values())

    def append(self, kind: str, **values: Any) -> Row:
        """Write a row, after one for the machine where that is not the machine of the last rows.

        Args:
            kind: What the row is, such as `run`.
            values: What it says; anything that JSON can hold.

        Returns:
            The row as a later reader finds it, without its kind.
        """
        if not self._machine_is_written:
            self._machine_is_written = True
            machine = environment()
            if self.of("environment")[-1:] != [machine]:
                self._write({"kind": "environment", **machine})
        return _content(self._write({"kind": kind, **values}))

    def header(self, **values: Any) -> None:
        """State the settings that all runs of the file share.

        Args:
            values: Settings by name.

        Raises:
            SystemExit: If the file holds runs with other settings.
        """
        known = self.of("header")
        if not known:
            self.append("header", **values)
        elif known[-1] != values:
            raise SystemExit(f"'{self.path}' holds runs with {known[-1]}. Give another file.")

    def _write(self, row: Row) -> Row:
        line = json.dumps(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        with self.path.open("a") as file:
            file.write(line + "\n")
        self.rows.append(json.loads(line))
        return self.rows[-1]


def _content(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "kind"}


def read(path: Path) -> list[Row]:
    """Read all rows of a file; a last line that was cut off by a kill is left out.

    Args:
        path: The file; one that does not exist has no rows.

    Returns:
        The rows, each with its `kind`.

    Raises:
        ValueError: If a line is no JSON object with a `kind`.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Expected line {number} of '{path}' to be JSON, but got {line[:80]!r}.") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise ValueError(f"Expected line {number} of '{path}' to be an object with `kind`, but got {line[:80]!r}.")
        rows.append(row)
    return rows


def _drop_torn_line(path: Path) -> None:
    """Cut off what a kill left of a line, so that the next row begins a line of its own."""
    if not path.exists():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)


def environment() -> Row:
    """Return the versions and the machine a result depends on, without names or paths."""
    import lightning

    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_16_bit": _native_16_bit(),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def _cpu() -> str:
    """Return the name of the processor model."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _native_16_bit() -> list[str]:
    """Return what the processor multiplies natively in 16 bits; without it such products are emulated, and slow."""
    flags = _cpu_field("flags").split() or _cpu_field("Features").split()
    return [flag for flag in ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16", "bf16") if flag in flags]


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        if line.startswith(name):
            return line.split(":")[1].strip()
    return ""
