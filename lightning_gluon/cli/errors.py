"""Errors of a command: one line instead of a traceback, as long as nothing has been computed."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["flat", "one_line", "one_line_errors", "search_working_directory"]

LONGEST = 600  # characters of a text that others wrote
OURS = "lightning_gluon"  # the package whose errors are whole sentences


@contextmanager
def one_line_errors(begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Exit with one line instead of an exception's traceback.

    Args:
        begun: Whether the run has computed something; an exception then keeps its traceback.

    Yields:
        Nothing.

    Raises:
        SystemExit: For an exception; its cause is the exception.
        BrokenPipeError: If the reader of a pipe has read enough.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if begun():
            raise
        raise SystemExit(f"lightning-gluon: error: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return one line for an exception: the sentence of our own, with type and place for those of others.

    Args:
        error: An exception that was raised.

    Returns:
        One line.

    Example:
        >>> import importlib
        >>> try:
        ...     importlib.import_module("no_such_module")
        ... except ImportError as error:
        ...     print(one_line(error))
        ModuleNotFoundError: No module named 'no_such_module'
    """
    kind = type(error).__name__
    text = flat(str(error)) or kind
    place, ours = "", False
    for frame, line in traceback.walk_tb(error.__traceback__):  # the last frame is the one that raised
        ours = _is_ours(frame.f_globals)
        if not ours and not _is_installed(frame.f_globals):
            file = Path(frame.f_code.co_filename).name
            place = f" ({file}:{line})"
    if ours:
        return text
    return f"{kind}: {text}{place}"


def flat(text: str) -> str:
    """Return a text as one line of bounded length.

    Args:
        text: Any text.

    Returns:
        The text without line breaks.

    Example:
        >>> flat("  two   words ")
        'two words'
    """
    line = " ".join(text.split())
    if len(line) <= LONGEST:
        return line
    return line[: LONGEST - 3] + "..."


def _is_ours(names: Mapping[str, object]) -> bool:
    """Tell whether the names are those of a module of this project."""
    module = str(names.get("__name__", ""))
    return module.partition(".")[0] == OURS


def _is_installed(names: Mapping[str, object]) -> bool:
    """Tell whether the names are those of Python or an installed package; others are the user's."""
    origin = str(names.get("__file__", ""))
    installed = origin.startswith((sys.prefix, sys.base_prefix))
    return not origin or installed or "site-packages" in origin


def search_working_directory() -> None:
    """Let class paths of the project one stands in be found, after all installed packages."""
    if not {"", os.getcwd()}.intersection(sys.path):  # `python -m` has put it there
        sys.path.append(os.getcwd())
