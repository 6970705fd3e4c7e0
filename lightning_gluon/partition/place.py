"""One place of a parameter in the module tree, with all that a rule may ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from lightning_gluon.partition.knowledge import names_match, table_entries

__all__ = ["Place", "class_names", "is_adapter", "look_up", "strip_wrappers"]

Shape = tuple[int, ...]


def class_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's class and of its base classes, most specific first."""
    return tuple(cls.__name__ for cls in type(module).__mro__)


def strip_wrappers(path: str) -> tuple[str, ...]:
    """Return the components of a path without those that wrappers and adapters put in."""
    parts: list[str] = []
    skip = False
    for part in path.split(".") if path else ():
        if skip:  # the adapter's name in peft: `lora_B.default`, `modules_to_save.default`
            skip = False
        elif names_match("NAMED_PARTS", part):
            skip = True
        elif part not in table_entries("WRAPPERS"):
            parts.append(part)
    return tuple(parts)


def is_adapter(path: str) -> bool:
    """Tell whether a module is part of an adapter rather than of the network itself."""
    return any(names_match("ADAPTER_PARTS", part) for part in path.split("."))


def look_up(modules: tuple[nn.Module, ...], *names: str) -> Any:
    """Return the first value found under any of the names on these modules, or else on their configurations."""
    for module in modules:
        for name in names:
            value = getattr(module, name, None)
            if value is not None:
                return value
    for module in modules:
        config = getattr(module, "config", None)
        for name in names:
            try:
                value = getattr(config, name, None)
            except Exception:  # a configuration whose layers differ answers no question about all of them
                value = None
            if value is not None:
                return value
    return None


@dataclass(frozen=True)
class Place:
    """One place where a parameter hangs in the module tree.

    Args:
        name: Qualified name of the parameter.
        local: Its name on the owning module (`weight`), seen through parametrizations and weight norm.
        chain: `(path, module)` from the root down to the owning module, wrappers left out.
        shape: Shape of the parameter.
        gain: True for the magnitudes that weight norm takes out of a weight.
    """

    name: str
    local: str
    chain: tuple[tuple[str, nn.Module], ...]
    shape: Shape = ()
    gain: bool = False

    @property
    def owner(self) -> nn.Module:
        """The module that owns the parameter."""
        return self.chain[-1][1]

    @property
    def kind(self) -> str:
        """Class name of the owner."""
        return type(self.owner).__name__

    @property
    def path(self) -> str:
        """Qualified name of the owning module."""
        return self.chain[-1][0]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Components of the owner's path, without wrappers."""
        return strip_wrappers(self.path)

    @cached_property
    def holders(self) -> tuple[tuple[str, nn.Module], ...]:
        """`(component, module that holds it)` from the owner upwards: the layer's own name and whose layer it is."""
        found = []
        path = self.path
        modules = dict(self.chain)
        while path:
            parent, _, part = path.rpartition(".")
            if strip_wrappers(path) != strip_wrappers(parent):
                found.append((part, modules[parent]))
            path = parent
        return tuple(found)

    @property
    def layer(self) -> str:
        """Name of the owner on the module that holds it; empty for the root."""
        return self.holders[0][0] if self.holders else ""

    @property
    def label(self) -> str:
        """The parameter's name as its module means it: members of a ParameterList or -Dict go by the name of that."""
        if isinstance(self.owner, nn.ParameterList | nn.ParameterDict) and self.holders:
            return self.layer
        return self.local

    @property
    def around(self) -> tuple[nn.Module, ...]:
        """The owner and all modules around it, nearest first."""
        return tuple(module for _, module in reversed(self.chain))

    def ancestors(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield `(path, module)` from the owner's parent up to the root."""
        yield from reversed(self.chain[:-1])

    @property
    def is_vector(self) -> bool:
        """True when at most one dimension has more than one entry."""
        return sum(size != 1 for size in self.shape) <= 1

    def owned_by(self, *fragments: str) -> bool:
        """Tell whether the owner's class, or a base class, has one of the fragments in its name."""
        return any(fragment in name for name in class_names(self.owner) for fragment in fragments)

    def inside(self, table: str) -> bool:
        """Tell whether the owner, or a module around it, has a name in a table of patterns."""
        return any(names_match(table, part) for part in self.path.split("."))
