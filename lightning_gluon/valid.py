"""What a value may be, said once: checks that return the value, or raise one sentence with name, range and value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

__all__ = ["Check", "did_you_mean", "dtype_name", "number", "one_of", "pair_of", "whole"]

Check = Callable[..., Any]  # (name, value, where="") -> the value, as it is to be kept


def one_of(*choices: Any) -> Check:
    """Allow what is listed."""

    def check(name: str, value: Any, where: str = "") -> Any:
        if value not in choices:
            listed = ", ".join(map(str, choices))
            raise ValueError(f"Expected `{name}`{where} to be one of {listed}, but got {value!r}.")
        return value

    return check


def number(low: float = 0, high: float = math.inf, *, signs: str = "<= <", none: bool = False) -> Check:
    """Allow numbers (and 0-dim tensors) between two bounds; `signs` says which of the bounds belong to the range."""
    left, right = signs.split()

    def check(name: str, value: Any, where: str = "") -> Any:
        if none and value is None:
            return value
        try:
            plain = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            plain = math.nan
        above = low <= plain if left == "<=" else low < plain
        below = plain <= high if right == "<=" else plain < high
        if not (above and below):
            raise ValueError(
                f"Expected `{name}`{where} to satisfy {low} {left} {name} {right} {high}, but got {value!r}."
            )
        return value

    return check


def whole(least: int = 0, *, none: str = "", unit: str = "") -> Check:
    """Allow whole numbers from `least` on, and `None` where it means something."""

    def check(name: str, value: Any, where: str = "") -> Any:
        if none and value is None:
            return value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            bound = f" >= {least}" if least > -(2**63) else ""
            other = f", or None for {none}" if none else ""
            raise ValueError(f"Expected `{name}`{where} to be a whole number{unit}{bound}{other}, but got {value!r}.")
        return value

    return check


def pair_of(check_one: Check) -> Check:
    """Allow two values."""

    def check(name: str, value: Any, where: str = "") -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(f"Expected `{name}`{where} to be two numbers, but got {value!r}.")
        return tuple(check_one(name, item, where) for item in value)

    return check


def dtype_name(name: str, value: Any, where: str = "") -> str | None:
    """Allow a floating-point dtype, which is kept by name."""
    plain = str(value).removeprefix("torch.") if isinstance(value, (str, torch.dtype)) else value
    dtype = getattr(torch, plain, None) if isinstance(plain, str) else None
    if plain is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"Expected `{name}`{where} to be a floating-point dtype such as 'bfloat16' or None, but got {value!r}."
        )
    return plain


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Return the name that was probably meant, as a sentence; empty where none is near."""
    near = difflib.get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""
