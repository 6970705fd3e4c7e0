"""The values that options may have: checks that return the value, or raise one sentence with name, range and value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Check(Protocol):
    """A check of one value."""

    def __call__(self, name: str, value: object, where: str = "") -> Any:
        """Return the value as it is to be kept.

        Args:
            name: Name of the option.
            value: Its value.
            where: Begins with a space and says whose it is, such as ` of group 'bias'`.

        Raises:
            ValueError: If the value is not allowed.
        """


def refusal(name: str, where: str, wanted: str, value: object) -> ValueError:
    """Return the error of a value that is not allowed."""
    return ValueError(f"Expected `{name}`{where} to {wanted}, but got {value!r}.")


def one_of(*choices: object) -> Check:
    """Allow the listed values.

    Returns:
        The check.

    Example:
        >>> one_of("raise", "skip")("on_nonfinite", "skip")
        'skip'
    """
    listed = ", ".join(map(str, choices))

    def check(name: str, value: object, where: str = "") -> object:
        if value not in choices:
            raise refusal(name, where, f"be one of {listed}", value)
        return value

    return check


@dataclass(frozen=True)
class Range:
    """Numbers (and 0-dim tensors) between two bounds.

    Args:
        low: The lower bound.
        high: The upper bound.
        signs: Which of the bounds belong to the range.
        none: Whether `None` is allowed too.
        word: A word that is allowed too.
    """

    low: float
    high: float
    signs: str
    none: bool
    word: str | None = None

    def __call__(self, name: str, value: object, where: str = "") -> object:
        """Return a number that lies in the range."""
        if value is None and self.none:
            return value
        if isinstance(value, str) and value == self.word:
            return value
        if not self.holds(_as_float(value)):
            left, right = self.signs.split()
            wanted = f"satisfy {self.low} {left} {name} {right} {self.high}"
            if self.word is not None:
                wanted += f" or be {self.word!r}"
            raise refusal(name, where, wanted, value)
        return value

    def holds(self, number: float) -> bool:
        """Return whether a number lies in the range; NaN does not."""
        left, right = self.signs.split()
        above = number > self.low
        if left == "<=":
            above = number >= self.low
        below = number < self.high
        if right == "<=":
            below = number <= self.high
        return above and below


def number(
    low: float = 0, high: float = math.inf, *, signs: str = "<= <", none: bool = False, word: str | None = None
) -> Check:
    """Allow numbers between two bounds, see `Range`.

    Returns:
        The check.

    Example:
        >>> number(0, 1)("momentum", 0.9)
        0.9
        >>> number(0, 1)("momentum", 1)
        Traceback (most recent call last):
        ValueError: Expected `momentum` to satisfy 0 <= momentum < 1, but got 1.
    """
    return Range(low, high, signs, none, word)


def _as_float(value: Any) -> float:
    """Return a number, or NaN for anything else."""
    if isinstance(value, str):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def whole(least: int = 0, *, most: float = math.inf, none: str = "", unit: str = "") -> Check:
    """Allow whole numbers from `least` to `most`, and `None` if it means something.

    Returns:
        The check.

    Example:
        >>> whole(1, none="the full carry")("rank", None)
    """
    wanted = f"be a whole number{unit}"
    if least > -(2**63):
        wanted += f" >= {least}"
    if most < math.inf:
        wanted += f" and <= {most}"
    if none:
        wanted += f", or None for {none}"

    def check(name: str, value: object, where: str = "") -> object:
        if none and value is None:
            return value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise refusal(name, where, wanted, value)
        return value

    return check


def text(*, none: bool = False) -> Check:
    """Allow a name; a table that grows says later which there are.

    Returns:
        The check.

    Example:
        >>> text(none=True)("retract", "sphere")
        'sphere'
    """

    def check(name: str, value: object, where: str = "") -> object:
        if not isinstance(value, str) and not (none and value is None):
            raise refusal(name, where, "be a name", value)
        return value

    return check


def pair_of(check_one: Check) -> Check:
    """Allow two values, in anything that behaves as a sequence.

    Returns:
        The check.

    Example:
        >>> pair_of(number(0, 1))("betas", [0.9, 0.95])
        (0.9, 0.95)
    """

    def check(name: str, value: object, where: str = "") -> tuple:
        pair = plain(value)
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise refusal(name, where, "be two numbers", value)
        first, second = pair
        return check_one(name, first, where), check_one(name, second, where)

    return check


def dtype_name(*names: str, codes: Sequence[str] = ()) -> Check:
    """Allow a floating-point dtype (one of those named, if any are) or `None`; it is kept by name.

    Args:
        *names: Names of dtypes; without any all are allowed.
        codes: Further names, of quantised forms.

    Returns:
        The check.

    Example:
        >>> dtype_name()("momentum_dtype", torch.bfloat16)
        'bfloat16'
    """
    listed = ", ".join((*names, "None"))

    def check(name: str, value: object, where: str = "") -> str | None:
        if value is None:
            return None
        found = str(value).removeprefix("torch.")
        if found in codes:
            return found
        if not isinstance(value, (str, torch.dtype)) or not _is_floating(found):
            also = "".join(f", {code!r}" for code in codes)
            raise refusal(name, where, f"be a floating-point dtype such as 'bfloat16'{also} or None", value)
        if names and found not in names:
            raise refusal(name, where, f"be one of {listed}", found)
        return found

    return check


def _is_floating(name: str) -> bool:
    dtype = getattr(torch, name, None)
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def plain(value: object) -> Any:
    """Return Python's own numbers and sequences for those of NumPy, OmegaConf and others.

    A checkpoint that holds others is not loaded with `weights_only`. A tensor of one number stays a tensor, since a
    learning rate may be one.

    Args:
        value: Anything.

    Returns:
        The same, or a plain copy of it: tuples stay tuples, other sequences become lists.

    Example:
        >>> plain(range(2)), plain((1, 2))
        ([0, 1], (1, 2))
    """
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.ndim == 1 else value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, Sequence):
        return list(map(plain, value))
    return value


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the name that was probably meant.

    Returns:
        A sentence; empty if no name is near.

    Example:
        >>> did_you_mean("glouon", ["gluon", "muon"])
        ' Did you mean `gluon`?'
    """
    near = difflib.get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""
