"""State read back from a checkpoint: one sentence for whatever in it is no value of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lightning_gluon.radius.radii import Radius
from lightning_gluon.valid import Check, number, whole


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

    def __init__(self, state: Any, owner: str) -> None:
        self.owner = owner
        if not isinstance(state, Mapping):
            raise ValueError(f"Expected {self.where} to be a mapping, but got {type(state).__name__}.")
        self.state = state

    @property
    def where(self) -> str:
        """The place, in the words of an error sentence."""
        return f"the saved state of `{self.owner}`"

    def value(self, key: str) -> Any:
        """Return a value, which must be there."""
        if key not in self.state:
            raise ValueError(f"Expected {self.where} to hold `{key}`, but it is missing: the checkpoint is damaged.")
        return self.state[key]

    def part(self, key: str) -> Saved | None:
        """Return the part under a key, `None` if none was written."""
        found = self.value(key)
        return None if found is None else Saved(found, f"{self.owner}.{key}")

    def number(self, key: str, check: Check | None = None) -> float:
        """Return a number, at least 0 unless another check is given."""
        return float((check or number())(key, self.value(key), f" in {self.where}"))

    def whole(self, key: str) -> int:
        """Return a whole number, at least 0."""
        return whole()(key, self.value(key), f" in {self.where}")

    def flag(self, key: str) -> bool:
        """Return true or false."""
        found = self.value(key)
        if not isinstance(found, bool):
            raise ValueError(f"Expected `{key}` in {self.where} to be true or false, but got {found!r}.")
        return found

    def numbers(self, key: str, check: Check | None = None, *, count: int | None = None) -> list[float]:
        """Return a list of numbers, of a known length if there is one."""
        found = self.value(key)
        if not isinstance(found, (list, tuple)):
            raise ValueError(f"Expected `{key}` in {self.where} to be a list of numbers, but got {found!r}.")
        if count is not None and len(found) != count:
            raise ValueError(f"Expected `{key}` in {self.where} to be {count} numbers, but got {len(found)}.")
        return [float((check or number())(key, item, f" in {self.where}")) for item in found]

    def radii(self, key: str) -> dict[str, Radius]:
        """Return radii by group name: one number each, or one per parameter."""
        table = Saved(self.value(key), f"{self.owner}.{key}")
        found: dict[str, Radius] = {}
        for name, radius in table.state.items():
            several = isinstance(radius, (list, tuple))
            found[name] = table.numbers(name) if several else table.number(name)
        return found

    def tensors(self, key: str, known: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
        """Return copies of saved tensors by the parameter they belong to, on its device.

        Args:
            key: Where they are: a mapping from parameter names.
            known: Parameters by name; what was saved for others is left out.

        Returns:
            The copies.

        Raises:
            ValueError: If one is no tensor of its parameter's shape.
        """
        table = Saved(self.value(key), f"{self.owner}.{key}")
        found = {}
        for name in table.state.keys() & known.keys():
            parameter, value = known[name], table.state[name]
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"Expected {name!r} in {table.where} to be a tensor of shape {tuple(parameter.shape)}, but got "
                    f"{shape}."
                )
            found[parameter] = value.to(parameter.device, copy=True)
        return found

    def only(self, keys: Collection[str]) -> None:
        """Raise if there is anything but these keys."""
        unknown = sorted(map(str, self.state.keys() - set(keys)))
        if unknown:
            raise ValueError(f"Expected {self.where} to hold {', '.join(keys)}, but it has {unknown[0]!r} as well.")
