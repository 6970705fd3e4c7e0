"""Errors of a command: one line instead of a traceback, as long as nothing has been computed."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["flat", "one_line", "one_line_errors", "search_working_directory"]

LONGEST = 600  # characters of a text that others wrote
OURS = ("lightning_gluon", "recipes")  # packages whose errors are whole sentences


@contextmanager
def one_line_errors(begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Exit with one line where an exception would show its traceback.

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
    text = flat(str(error)) or type(error).__name__
    frames = list(traceback.walk_tb(error.__traceback__))
    source = str(frames[-1][0].f_globals.get("__name__")) if frames else ""
    if source.partition(".")[0] in OURS:
        return text
    places = [f"{Path(frame.f_code.co_filename).name}:{line}" for frame, line in frames if _is_theirs(frame.f_globals)]
    place = f" ({places[-1]})" if places else ""
    return f"{type(error).__name__}: {text}{place}"


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
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _is_theirs(names: dict[str, object]) -> bool:
    """Tell whether a frame is of the user's code: of no installed package, and not of this one."""
    origin = str(names.get("__file__", ""))
    installed = not origin or "site-packages" in origin or origin.startswith((sys.prefix, sys.base_prefix))
    return not installed and str(names.get("__name__", "")).partition(".")[0] not in OURS


def search_working_directory() -> None:
    """Let class paths of the project one stands in be found, after all installed packages."""
    if not {"", os.getcwd()}.intersection(sys.path):  # `python -m` has put it there
        sys.path.append(os.getcwd())
