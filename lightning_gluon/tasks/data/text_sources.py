"""Sources of text: the Python sources of this environment, local files, a dataset on the hub.

A source is a list of training documents and a list of held-out ones. Documents are kept whole, or one text is cut at
one place; no held-out character is ever trained on.
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightning_gluon.tasks.data.hub import load_dataset, split_name
from lightning_gluon.tasks.data.text_files import find_files, read_code, read_documents

__all__ = ["Corpus", "read_files", "read_hub_text", "read_python"]

_BUCKETS = 10_000  # resolution of the held-out fraction
_PACKAGES = ("site-packages/", "dist-packages/")
_OFFLINE_SOURCES = "source='python' (embedded: the sources of this Python) or source='files'"


@dataclass(frozen=True)
class Corpus:
    """Two disjoint lists of documents.

    Args:
        train: Documents to train on.
        val: Documents held out.
    """

    train: list[str]
    val: list[str]


class Document(NamedTuple):
    """A text and the name whose checksum says whether it is held out."""

    name: str
    text: str


def read_python(max_bytes: int | None, val_fraction: float, *, packages: bool = False) -> Corpus:
    """Read the Python sources that every environment has: the standard library, and its packages if asked for.

    Files come in the order of a checksum of their relative path, so that the first `max_bytes` are a fair sample.
    They are the same files on every machine with the same Python. Copies of a file count once. A file is held out if
    its checksum says so, whatever `max_bytes` is; the end of the text is where `max_bytes` leaves too few files.

    Args:
        max_bytes: Where to stop reading; None reads everything.
        val_fraction: Part that is held out.
        packages: Whether to read the installed packages as well.

    Returns:
        The corpus, split by file.

    Raises:
        FileNotFoundError: If this Python has no readable sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = _sources(root)
    if packages:  # those of a virtual environment lie elsewhere
        files |= _sources(Path(sysconfig.get_paths()["purelib"]), _PACKAGES[0])
    else:
        files = {name: file for name, file in files.items() if not name.startswith(_PACKAGES)}
    ordered = sorted(files, key=_by_checksum)
    documents = (Document(name, read_code(files[name])) for name in ordered)
    corpus = _split_documents(documents, max_bytes, val_fraction)
    if not any(corpus.train):
        raise FileNotFoundError(
            f"Expected Python sources under '{root}', but found none to read. Use source='files' with `path`."
        )
    return corpus


def _sources(root: Path, prefix: str = "") -> dict[str, Path]:
    files = {}
    for file in root.rglob("*.py"):
        name = file.relative_to(root).as_posix()
        if file.is_file():
            files[prefix + name] = file
    return files


def read_files(
    path: str, max_bytes: int | None, val_fraction: float, *, val_path: str | None = None, column: str = "text"
) -> Corpus:
    """Read a file, or all files with documents below a folder.

    A text file is one document. JSON-lines and parquet files have a document per row.

    Args:
        path: A file or a folder.
        max_bytes: Where to stop reading; None reads everything.
        val_fraction: Part that is held out: of the documents, or the end of the text where they are too few.
        val_path: A file or a folder to hold out instead. A training document with the same text is left out.
        column: The column with the text, where a file has columns.

    Returns:
        The corpus.

    Raises:
        ValueError: If a file is no text, or nothing is left to train on or to hold out.
    """
    files = find_files(path)
    documents = _documents(files, Path(path).expanduser(), column)
    if val_path is None:
        corpus = _split_documents(documents, max_bytes, val_fraction)
    else:
        held_out = find_files(val_path)
        _check_apart(files, held_out)
        others = _documents(held_out, Path(val_path).expanduser(), column)
        val = dict.fromkeys(text for _, text in others)
        train = (text for _, text in documents if text not in val)
        kept = _bounded(train, max_bytes)
        corpus = Corpus(kept, list(val))
    for split, texts in (("train", corpus.train), ("held-out", corpus.val)):
        if not any(texts):
            raise ValueError(
                f"Expected text in '{path}', but the {split} split is empty. Give a larger file, another "
                "`val_fraction`, or use source='python', which needs no file."
            )
    return corpus


def _check_apart(files: list[Path], held_out: list[Path]) -> None:
    resolved = {file.resolve() for file in files}
    for file in held_out:
        if file.resolve() in resolved:
            raise ValueError(f"Expected `path` and `val_path` to share no file, but both hold '{file}'.")


def _documents(files: list[Path], root: Path, column: str) -> Iterator[Document]:
    for file in files:
        name = file.relative_to(root).as_posix()
        for row, text in enumerate(read_documents(file, column)):
            title = f"{name}:{row}" if row else name
            yield Document(title, text)


def read_hub_text(
    name: str, config: str | None, max_bytes: int | None, val_fraction: float, *, column: str = "text"
) -> Corpus:
    """Read a text dataset from the Hugging Face hub by its id, such as `JeanKaddour/minipile`.

    Args:
        name: The id.
        config: Name of the dataset's configuration, such as `wikitext-103-raw-v1`.
        max_bytes: Where to stop reading the training split; None reads everything.
        val_fraction: Part that is held out where the dataset has no validation split.
        column: The column with the text.

    Returns:
        The corpus.

    Raises:
        ConnectionError: If the hub cannot be reached or does not know the id.
        ValueError: If there is no split `train`, or no such column.
    """
    loaded = load_dataset(name, config, otherwise=_OFFLINE_SOURCES)
    columns = loaded["train"].column_names
    if column not in columns:
        raise ValueError(f"Expected a column `{column}` in '{name}', but it has {columns}. Set `column`.")
    rows = enumerate(loaded["train"])
    train = (Document(str(i), row[column]) for i, row in rows)
    held_out = split_name(loaded, "val")
    if held_out is None:
        return _split_documents(train, max_bytes, val_fraction)
    val = (row[column] for row in loaded[held_out])
    texts = (text for _, text in train)
    return Corpus(
        _bounded(filter(None, texts), max_bytes),  # a third of WikiText's rows are empty
        list(filter(None, val)),
    )


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode())


def _by_checksum(name: str) -> tuple[int, str]:
    return _checksum(name), name


def _split_documents(documents: Iterable[Document], max_bytes: int | None, val_fraction: float) -> Corpus:
    """Hold a document out if the checksum of its name says so, or the end of the text where there are too few."""
    corpus = Corpus([], [])
    seen: set[str] = set()
    size = 0
    for name, text in documents:
        if not text or text in seen:
            continue
        seen.add(text)
        bucket = _checksum("held out " + name) % _BUCKETS
        split = corpus.val if bucket < val_fraction * _BUCKETS else corpus.train
        split.append(text)
        size += len(text)
        if max_bytes is not None and size >= max_bytes:
            break
    if corpus.train and corpus.val:
        return corpus
    # Too few documents for their checksums to tell them apart.
    whole = "".join(_bounded(corpus.train + corpus.val, max_bytes))
    return _cut_text(whole, val_fraction)


def _bounded(documents: Iterable[str], max_bytes: int | None) -> list[str]:
    if max_bytes is None:
        return list(documents)
    kept: list[str] = []
    room = max_bytes
    for document in documents:
        if room <= 0:
            break
        kept.append(document[:room])
        room -= len(document)
    return kept


def _cut_text(text: str, val_fraction: float) -> Corpus:
    """Cut one text in two, at a line's end if it has one before the place."""
    end = int(len(text) * (1 - val_fraction))
    line = text.rfind("\n", 0, end) + 1
    place = line or end
    return Corpus(
        train=[text[:place]],
        val=[text[place:]],
    )
