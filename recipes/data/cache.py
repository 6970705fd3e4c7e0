"""Files that several processes may ask for at once: written under another name, then renamed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "cache_folder", "digest"]


def cache_folder(folder: str | None) -> Path:
    """Return `folder`, or `$LIGHTNING_GLUON_CACHE`, or `lightning_gluon` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = folder or os.environ.get("LIGHTNING_GLUON_CACHE") or f"{home}/lightning_gluon"
    return Path(place).expanduser()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary file in the same folder that becomes `path` if the block succeeds and vanishes if not.

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
