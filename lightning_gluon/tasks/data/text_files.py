"""Documents in local files: a text file is one document, and so is each row of a JSON-lines or parquet file.

A file that is no text is refused by name: a model would learn its bytes without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gluon.extras import require

__all__ = ["SUFFIXES", "TableRow", "find_files", "read_code", "read_documents", "read_rows"]

_REPLACED = "\N{REPLACEMENT CHARACTER}"
_UNDECODABLE = 0.01  # share of a text's characters that may be no UTF-8, as a stray byte of another encoding is
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".json", ".csv", ".tex", ".html", ".c", ".h", ".cpp", ".rs")


def find_files(path: str) -> list[Path]:
    """Return a file, or all files with documents below a folder, in the order of their names.

    Args:
        path: A file or a folder.

    Returns:
        Regular files.

    Raises:
        FileNotFoundError: If there is none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    files = []
    for found in sorted(place.rglob("*")):
        if found.suffix.lower() in SUFFIXES and not found.is_dir():
            files.append(found)
    if not files:
        raise FileNotFoundError(
            f"Expected '{path}' to be a text file or a folder with some ({', '.join(SUFFIXES[:4])}, ...), but "
            "found none. Give another `path`, or use source='python', which needs no file."
        )
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"Expected files below '{path}', but '{file}' is a device, a pipe or a link to nothing. Remove it."
            )
    return files


def read_documents(file: Path, column: str) -> Iterator[str]:
    """Yield the documents of a file.

    Args:
        file: A text, JSON-lines or parquet file.
        column: The column with the text, where a file has columns.

    Returns:
        An iterator over the documents.
    """
    if file.suffix.lower() in _ROWS:
        return _column_texts(file, column)
    return iter([read_text(file)])


def read_text(file: Path) -> str:
    """Read a file of UTF-8 text.

    Args:
        file: The file.

    Returns:
        Its text; a stray byte that is no UTF-8 becomes the replacement character.

    Raises:
        ValueError: If it holds a NUL byte, or more than 1 % of it is no UTF-8.
    """
    blob = _read_bytes(file)
    if b"\0" in blob:
        raise ValueError(
            f"Expected a text file, but '{file}' holds NUL bytes, as binary files and UTF-16 do. Unpack it, save it as "
            "UTF-8, or leave it out."
        )
    text = blob.decode("utf-8-sig", errors="replace")
    undecodable = text.count(_REPLACED) - blob.count(_REPLACED.encode())
    if undecodable > _UNDECODABLE * len(text):
        raise ValueError(
            f"Expected UTF-8 text, but {undecodable:,} of the {len(text):,} characters of '{file}' are none. Unpack "
            "it, save it as UTF-8, or leave it out."
        )
    return text


def read_code(file: Path) -> str:
    """Read a source file as it is: Python's own tests have some that are no text on purpose."""
    return _read_bytes(file).decode(errors="replace")


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OSError(
            f"Expected to read '{file}', but: {error}. Check its permissions or give another `path`."
        ) from error


@dataclass(frozen=True)
class TableRow:
    """A row of a file with columns.

    Args:
        place: Where it is, for errors.
        values: Its values by column.
    """

    place: str
    values: dict[str, Any]


def read_rows(file: Path, columns: list[str] | None = None) -> Iterator[TableRow]:
    """Yield the rows of a JSON-lines or parquet file.

    Args:
        file: The file.
        columns: Columns of a parquet file to read; None reads all.

    Yields:
        Rows.

    Raises:
        ValueError: If the file is of another kind, or cannot be read.
    """
    read = _ROWS.get(file.suffix.lower())
    if read is None:
        raise ValueError(f"Expected JSON lines or parquet ({', '.join(_ROWS)}), but got '{file}'.")
    yield from read(file, columns)


def _column_texts(file: Path, column: str) -> Iterator[str]:
    for row in read_rows(file, [column]):
        if column not in row.values:
            raise ValueError(f"Expected a column '{column}', but {row.place} has {sorted(row.values)}. Set `column`.")
        text = row.values[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(f"Expected text in column '{column}', but {row.place} has {text!r:.40}.")
        whole = text.encode(errors="replace")  # JSON can spell halves of characters
        yield whole.decode()


def _json_rows(file: Path, columns: list[str] | None) -> Iterator[TableRow]:
    lines = read_text(file).split("\n")
    for number, line in enumerate(lines, start=1):
        place = f"line {number} of '{file}'"
        if line.strip():
            yield TableRow(place, _json_object(line, place))


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected one JSON object per line, but {place} is none: {error}") from error
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise ValueError(f"Expected one JSON object per line, but {place} is a {kind}.")
    return row


def _parquet_rows(file: Path, columns: list[str] | None) -> Iterator[TableRow]:
    parquet = require("pyarrow.parquet")
    arrow_error = require("pyarrow").ArrowException
    try:
        table = parquet.ParquetFile(file)
    except (arrow_error, OSError) as error:
        raise ValueError(f"Expected a readable parquet file, but '{file}' is not: {error}") from error
    names = table.schema_arrow.names
    for column in columns or ():
        if column not in names:
            raise ValueError(f"Expected a column '{column}' in '{file}', but it has {names}. Set `column`.")
    number = 0
    try:
        for batch in table.iter_batches(columns=columns):
            for values in batch.to_pylist():
                yield TableRow(f"row {number} of '{file}'", values)
                number += 1
    except (arrow_error, OSError) as error:
        raise ValueError(f"Expected whole rows in '{file}', but they cannot be read: {error}") from error


_ROWS = {".jsonl": _json_rows, ".ndjson": _json_rows, ".parquet": _parquet_rows}
SUFFIXES = (*_TEXT_SUFFIXES, *_ROWS)
