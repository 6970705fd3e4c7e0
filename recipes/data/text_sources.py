"""Where text comes from: the Python sources of this environment, local files, a dataset on the hub.

A source is a list of training documents and a list of held-out ones. Documents are kept whole, or one file is cut at
one place; no held-out character is ever trained on.
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from recipes.extras import require

__all__ = ["Corpus", "read_files", "read_hub_text", "read_python"]

_BUCKETS = 10_000  # resolution of the held-out fraction
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".json", ".jsonl", ".csv", ".tex", ".html", ".c", ".h", ".cpp", ".rs")


@dataclass(frozen=True)
class Corpus:
    """Two disjoint lists of documents.

    Args:
        train: Documents to train on.
        val: Documents held out.
    """

    train: list[str]
    val: list[str]


def read_python(max_bytes: int | None, val_fraction: float, *, packages: bool = False) -> Corpus:
    """Read the Python sources that every environment has: the standard library, and its packages if asked for.

    Files come in the order of a checksum of their relative path, so that the first `max_bytes` are a fair sample and
    are the same files on every machine with the same Python. Copies of a file count once. A file is held out if its
    checksum says so, whatever `max_bytes` is; the end of the text is where `max_bytes` leaves too few files.

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
    files = {n: p for n, p in files.items() if packages or not n.startswith(("site-packages/", "dist-packages/"))}
    if packages:  # those of a virtual environment lie elsewhere
        files |= _sources(Path(sysconfig.get_paths()["purelib"]), "site-packages/")
    ordered = sorted(files, key=lambda n: (_checksum(n), n))
    corpus = _split_documents(_read_all(files[n] for n in ordered), ordered, max_bytes, val_fraction)
    if not any(corpus.train):
        raise FileNotFoundError(
            f"Expected Python sources under '{root}', but found none to read. Use source='files' with `path`."
        )
    return corpus


def _sources(root: Path, prefix: str = "") -> dict[str, Path]:
    return {prefix + p.relative_to(root).as_posix(): p for p in root.rglob("*.py") if p.is_file()}


def read_files(path: str, max_bytes: int | None, val_fraction: float, *, val_path: str | None = None) -> Corpus:
    """Read a text file, or all text files below a folder.

    Args:
        path: A file or a folder.
        max_bytes: Where to stop reading; None reads everything.
        val_fraction: Part that is held out: of the files, or the end of the text where the files are too few.
        val_path: A file or a folder to hold out instead. A training file with the same text is left out.

    Returns:
        The corpus.

    Raises:
        ValueError: If nothing is left to train on or to hold out.
    """
    files = _text_files(path)
    if val_path is not None:
        held_out = _text_files(val_path)
        shared = {f.resolve() for f in files} & {f.resolve() for f in held_out}
        if shared:
            raise ValueError(f"Expected `path` and `val_path` to share no file, but both hold '{min(shared)}'.")
        val = dict.fromkeys(_read_all(held_out))
        corpus = Corpus(_bounded((text for text in _read_all(files) if text not in val), max_bytes), list(val))
    elif len(files) == 1:
        (text,) = _bounded(_read_all(files), max_bytes) or [""]
        corpus = _cut(text, val_fraction)
    else:
        root = Path(path).expanduser()
        names = [f.relative_to(root).as_posix() for f in files]
        corpus = _split_documents(_read_all(files), names, max_bytes, val_fraction)
    for split, documents in (("train", corpus.train), ("held-out", corpus.val)):
        if not any(documents):
            raise ValueError(
                f"Expected text in '{path}', but the {split} split is empty. Give a larger file, another "
                "`val_fraction`, or use source='python', which needs no file."
            )
    return corpus


def read_hub_text(name: str, config: str | None, max_bytes: int | None, val_fraction: float) -> Corpus:
    """Read a text dataset from the Hugging Face hub by its id, such as `JeanKaddour/minipile`.

    Args:
        name: The id.
        config: Name of the dataset's configuration, such as `wikitext-103-raw-v1`.
        max_bytes: Where to stop reading the training split; None reads everything.
        val_fraction: Part that is held out where the dataset has no validation split.

    Returns:
        The corpus.

    Raises:
        ConnectionError: If the hub cannot be reached or does not know the id.
        ValueError: If there is no split `train`, or no column `text`.
    """
    datasets = require("datasets", None)
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:  # the hub's client raises a dozen unrelated types when there is no network
        raise ConnectionError(
            f"Expected to load '{name}' from the hub, but: {type(error).__name__}: {error} Without a network use "
            "source='python' (embedded: the sources of this Python) or source='files' with the `path` of a local copy."
        ) from error
    if "train" not in loaded:
        raise ValueError(f"Expected a split `train` in '{name}', but it has {sorted(loaded)}.")
    columns = loaded["train"].column_names
    if "text" not in columns:
        raise ValueError(f"Expected a column `text` in '{name}', but it has {columns}.")
    documents = (row["text"] for row in loaded["train"] if row["text"])  # a third of WikiText's rows are empty
    val = next((s for s in ("validation", "valid", "val") if s in loaded), None)
    if val is not None:
        return Corpus(_bounded(documents, max_bytes), [row["text"] for row in loaded[val] if row["text"]])
    return _split_documents(documents, map(str, count()), max_bytes, val_fraction)


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode())


def _split_documents(
    documents: Iterable[str], names: Iterable[str], max_bytes: int | None, val_fraction: float
) -> Corpus:
    """Hold a document out if the checksum of its name says so, or the end of the text where there are too few."""
    train: list[str] = []
    val: list[str] = []
    seen: set[str] = set()
    size = 0
    for document, name in zip(documents, names, strict=False):
        if not document or document in seen:
            continue
        seen.add(document)
        held_out = _checksum("held out " + name) % _BUCKETS < val_fraction * _BUCKETS
        (val if held_out else train).append(document)
        size += len(document)
        if max_bytes is not None and size >= max_bytes:
            break
    if not (train and val):  # too few documents for their checksums to tell them apart
        return _cut("".join(_bounded(train + val, max_bytes)), val_fraction)
    return Corpus(train, val)


def _bounded(documents: Iterable[str], max_bytes: int | None) -> list[str]:
    kept: list[str] = []
    size = 0
    for document in documents:
        room = len(document) if max_bytes is None else max_bytes - size
        if room <= 0:
            break
        kept.append(document[:room])
        size += len(document)
    return kept


def _cut(text: str, val_fraction: float) -> Corpus:
    """Cut one text in two, at a line's end if it has one before the place."""
    end = int(len(text) * (1 - val_fraction))
    place = text.rfind("\n", 0, end) + 1 or end
    return Corpus([text[:place]], [text[place:]])


def _text_files(path: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    files = sorted(p for p in place.rglob("*") if p.suffix in _TEXT_SUFFIXES and p.is_file())
    if not files:
        raise FileNotFoundError(
            f"Expected '{path}' to be a text file or a folder with some ({', '.join(_TEXT_SUFFIXES[:4])}, ...), but "
            "found none. Give another `path`, or use source='python', which needs no file."
        )
    return files


def _read_all(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        try:
            yield file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise OSError(
                f"Expected to read '{file}', but: {error}. Check its permissions or give another `path`."
            ) from error
