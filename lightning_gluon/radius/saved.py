"""State read back from a checkpoint: one sentence for each thing in it that is no value of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn, TypeAlias

from torch import Tensor

from lightning_gluon.radius.radii import Radius
from lightning_gluon.valid import Check, number, whole

SavedState: TypeAlias = dict[str, Any]  # plain values and tensors, for a checkpoint


class Saved:
    """One part of a checkpoint, whose values are checked as they are read.

    Args:
        state: The part; everything but a mapping is refused.
        owner: Name of the part for the error sentences.

    Raises:
        ValueError: If it is no mapping, or, in a method, if a value is missing or none that a run could have written.

    Example:
        >>> Saved({"steps": 3}, "RadiusScheduler").whole("steps")
        3
    """

    def __init__(self, state: object, owner: str) -> None:
        self.owner = owner
        if not isinstance(state, Mapping):
            kind = type(state).__name__
            raise ValueError(f"Expected {self.where} to be a mapping, but got {kind}.")
        self.state = state

    @property
    def where(self) -> str:
        """The place, in the words of an error sentence."""
        return f"the saved state of `{self.owner}`"

    def _refuse(self, key: str, expected: str, found: str) -> NoReturn:
        raise ValueError(f"Expected `{key}` in {self.where} to be {expected}, but got {found}.")

    def value(self, key: str) -> Any:
        """Return a value, which must be there."""
        if key not in self.state:
            raise ValueError(f"Expected {self.where} to hold `{key}`, but it is missing: the checkpoint is damaged.")
        return self.state[key]

    def part(self, key: str) -> Saved | None:
        """Return the part under a key, `None` if none was written."""
        found = self.value(key)
        if found is None:
            return None
        return self.table(key)

    def table(self, key: str) -> Saved:
        """Return the part under a key, which must have been written."""
        owner = f"{self.owner}.{key}"
        return Saved(self.value(key), owner)

    def number(self, key: str, check: Check | None = None) -> float:
        """Return a number, at least 0 unless another check is given."""
        value = self.value(key)
        return self._checked(key, value, check)

    def _checked(self, key: str, value: object, check: Check | None) -> float:
        if check is None:
            check = number()
        place = f" in {self.where}"
        return float(check(key, value, place))

    def optional(self, key: str) -> float | None:
        """Return a number of any sign, or `None`."""
        value = self.value(key)
        if value is None:
            return None
        any_sign = number(-math.inf)
        return self._checked(key, value, any_sign)

    def whole(self, key: str) -> int:
        """Return a whole number, at least 0."""
        value = self.value(key)
        place = f" in {self.where}"
        return whole()(key, value, place)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        found = self.value(key)
        if not isinstance(found, bool):
            self._refuse(key, "true or false", repr(found))
        return found

    def numbers(
        self,
        key: str,
        check: Check | None = None,
        *,
        count: int | None = None,
    ) -> list[float]:
        """Return a list of numbers, of a known length if there is one."""
        found = self.value(key)
        if not isinstance(found, (list, tuple)):
            self._refuse(key, "a list of numbers", repr(found))
        size = len(found)
        if count is not None and size != count:
            self._refuse(key, f"{count} numbers", str(size))
        values = []
        for item in found:
            value = self._checked(key, item, check)
            values.append(value)
        return values

    def radii(self, key: str) -> dict[str, Radius]:
        """Return radii by group name: one number each, or one per parameter."""
        table = self.table(key)
        found: dict[str, Radius] = {}
        for name, radius in table.state.items():
            if isinstance(radius, (list, tuple)):
                found[name] = table.numbers(name)
            else:
                found[name] = table.number(name)
        return found

    def tensors(
        self,
        key: str,
        known: Mapping[str, Tensor],
    ) -> dict[Tensor, Tensor]:
        """Return copies of saved tensors by the parameter they belong to, on its device.

        Args:
            key: Where they are: a mapping from parameter names.
            known: Parameters by name; what was saved for others is left out.

        Returns:
            The copies.

        Raises:
            ValueError: If one is no tensor of its parameter's shape.
        """
        table = self.table(key)
        found = {}
        for name, parameter in known.items():
            if name not in table.state:
                continue
            value = table.tensor(name, parameter)
            device = parameter.device
            found[parameter] = value.to(device, copy=True)
        return found

    def tensor(self, key: str, parameter: Tensor) -> Tensor:
        """Return a tensor of the shape of a parameter."""
        value = self.value(key)
        shape = tuple(parameter.shape)
        found: object = type(value).__name__
        if isinstance(value, Tensor):
            found = tuple(value.shape)
        if found != shape:
            self._refuse(key, f"a tensor of shape {shape}", str(found))
        return value

    def only(self, keys: Collection[str]) -> None:
        """Raise if there is anything but these keys."""
        known = ", ".join(keys)
        for key in self.state:
            if key not in keys:
                raise ValueError(f"Expected {self.where} to hold {known}, but it has {key!r} as well.")
