"""Files that several processes may ask for at once: written under another name, then renamed."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

__all__ = ["atomic_write", "cache_folder", "cached", "digest"]

T = TypeVar("T")


def cache_folder(folder: str | None) -> Path:
    """Return `folder`, or `$LIGHTNING_GLUON_CACHE`, or `lightning_gluon` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = folder or os.environ.get("LIGHTNING_GLUON_CACHE") or f"{home}/lightning_gluon"
    return Path(place).expanduser()


def cached(path: Path, read: Callable[[Path], T], write: Callable[[Path], None]) -> T:
    """Read a file of the cache, and make it first where it is missing or cannot be read.

    Args:
        path: The file.
        read: Reads it, and raises if it is not whole.
        write: Makes it.

    Returns:
        The content that `read` returned.
    """
    if path.exists():
        try:
            return read(path)
        except Exception as error:  # a reader may say anything of a file that is cut off
            warnings.warn(f"The file '{path}' of the cache cannot be read and is made anew: {error}", stacklevel=2)
    with atomic_write(path) as temporary:
        write(temporary)
    return read(path)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary file in the same folder that becomes `path` if the block succeeds and vanishes if not.

    The file is on the disk before it has its name: a machine that stops does not leave a part of it behind.

    Args:
        path: The file to make.

    Yields:
        The temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(parts: Iterable[str]) -> str:
    """Return a short fingerprint of some strings.

    Example:
        >>> digest(["ab", "c"]) == digest(["a", "bc"])
        False
    """
    checksum = hashlib.sha256()
    for part in parts:
        blob = part.encode(errors="surrogatepass")
        checksum.update(len(blob).to_bytes(8, "little"))
        checksum.update(blob)
    return checksum.hexdigest()[:16]
