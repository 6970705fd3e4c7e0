"""The values that options may have: checks that return the value, or raise one sentence with name, range and value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

__all__ = ["Check", "did_you_mean", "dtype_name", "number", "one_of", "pair_of", "plain", "whole"]

Check: TypeAlias = Callable[..., Any]  # (name, value, where="") -> the value, as it is to be kept


def one_of(*choices: object) -> Check:
    """Allow what is listed."""
    listed = ", ".join(map(str, choices))

    def check(name: str, value: object, where: str = "") -> object:
        if value not in choices:
            raise ValueError(f"Expected `{name}`{where} to be one of {listed}, but got {value!r}.")
        return value

    return check


def number(low: float = 0, high: float = math.inf, *, signs: str = "<= <", none: bool = False) -> Check:
    """Allow numbers (and 0-dim tensors) between two bounds; `signs` says which of the bounds belong to the range."""
    left, right = signs.split()

    def check(name: str, value: Any, where: str = "") -> Any:
        if none and value is None:
            return value
        found = _as_float(value)
        above = low <= found if left == "<=" else low < found
        below = found <= high if right == "<=" else found < high
        if not (above and below):
            raise ValueError(
                f"Expected `{name}`{where} to satisfy {low} {left} {name} {right} {high}, but got {value!r}."
            )
        return value

    return check


def _as_float(value: Any) -> float:
    """Return a number, or NaN for what is none."""
    if isinstance(value, str):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def whole(least: int = 0, *, none: str = "", unit: str = "") -> Check:
    """Allow whole numbers from `least` on, and `None` where it means something."""
    bound = f" >= {least}" if least > -(2**63) else ""
    other = f", or None for {none}" if none else ""

    def check(name: str, value: Any, where: str = "") -> Any:
        if none and value is None:
            return value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"Expected `{name}`{where} to be a whole number{unit}{bound}{other}, but got {value!r}.")
        return value

    return check


def pair_of(check_one: Check) -> Check:
    """Allow two values, in whatever behaves as a sequence."""

    def check(name: str, value: Any, where: str = "") -> tuple:
        pair = plain(value)
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"Expected `{name}`{where} to be two numbers, but got {value!r}.")
        return tuple(check_one(name, item, where) for item in pair)

    return check


def dtype_name(*names: str) -> Check:
    """Allow a floating-point dtype (one of those named, if any are) or `None`; it is kept by name."""
    listed = ", ".join((*names, "None"))

    def check(name: str, value: Any, where: str = "") -> str | None:
        found = str(value).removeprefix("torch.") if isinstance(value, (str, torch.dtype)) else value
        dtype = getattr(torch, found, None) if isinstance(found, str) else None
        known = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        if found is not None and not known:
            raise ValueError(
                f"Expected `{name}`{where} to be a floating-point dtype such as 'bfloat16' or None, but got {value!r}."
            )
        if names and found is not None and found not in names:
            raise ValueError(f"Expected `{name}`{where} to be one of {listed}, but got {found!r}.")
        return found

    return check


def plain(value: Any) -> Any:
    """Return Python's own numbers, sequences and dicts for those of NumPy, OmegaConf and others.

    A checkpoint that holds others is not loaded with `weights_only`. A tensor of one number stays a tensor, since a
    learning rate may be one.

    Args:
        value: Anything.

    Returns:
        The same, or a plain copy of it: tuples stay tuples, other sequences become lists, mappings become dicts.

    Example:
        >>> plain(range(2)), plain((1, 2))
        ([0, 1], (1, 2))
    """
    if isinstance(value, (str, bytes)):
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Sequence) or (isinstance(value, torch.Tensor) and value.ndim == 1):
        return [plain(item.item() if isinstance(item, torch.Tensor) and item.ndim == 0 else item) for item in value]
    return value


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the name that was probably meant, as a sentence; empty if none is near."""
    near = difflib.get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""
