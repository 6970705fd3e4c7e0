"""The keys and class paths that a command line and its files give, for suggestions after a mistake."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_gluon.cli.config_files import check_files

__all__ = ["CLASS_SECTIONS", "Given"]

# Sections that are a class and its arguments.
CLASS_SECTIONS = ("model", "data")

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass
class Given:
    """Values by dotted key, as in `trainer.callbacks.0.init_args.monitor`; later ones replace earlier ones.

    Args:
        values: Values of files first, then of the command line.

    Example:
        >>> given = Given({"model.class_path": "torch.nn.Linear", "model.width": 3})
        >>> given.find("width"), given.owner("model.width"), given.parameters("model.width")[:2]
        (['model.width'], 'torch.nn.Linear', ['in_features', 'out_features'])
    """

    values: dict[str, object] = field(default_factory=dict)

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Given:
        """Return the values of arguments.

        Args:
            arguments: Arguments of the command line.

        Returns:
            Their values and those of the files they name.

        Raises:
            ValueError: If a file cannot be read.
        """
        given = cls()
        for content in check_files(arguments):
            given._add(_leaves("", content))
        for position, argument in enumerate(arguments):
            name, equals, value = argument.partition("=")
            if not name.startswith("--"):
                continue
            if not equals:
                value = "".join(arguments[position + 1 : position + 2])
            given._add([(name.removeprefix("--"), value)])
        return given

    def _add(self, values: Iterable[tuple[str, object]]) -> None:
        """Add values; `model: package.Net` is short for `model: {class_path: package.Net}`."""
        for key, value in values:
            if key in CLASS_SECTIONS and isinstance(value, str):
                key = f"{key}.class_path"
            self.values[key] = value

    def find(self, name: str) -> list[str]:
        """Return the keys that end in a name.

        Args:
            name: Last part of a key.

        Returns:
            Dotted keys.
        """
        return [key for key in self.values if key == name or key.endswith(f".{name}")]

    def owner(self, key: str) -> str | None:
        """Return the class path whose argument a key is.

        Args:
            key: A dotted key such as `model.init_args.width` or `model.width`.

        Returns:
            A class path; None if there is none.
        """
        section = key.rpartition(".")[0].removesuffix(".init_args")
        found = self.values.get(f"{section}.class_path")
        if isinstance(found, str):
            return found
        return None

    def parameters(self, key: str, *, required: bool = False) -> list[str]:
        """Return the arguments that the class of a key takes.

        Args:
            key: A dotted key.
            required: Whether only those without a default.

        Returns:
            Names of arguments; none if the class is unknown.
        """
        target = _find_imported(self.owner(key))
        if not callable(target):
            return []
        try:
            parameters = inspect.signature(target).parameters.values()
        except (TypeError, ValueError):  # a class without a signature
            return []
        names = []
        for parameter in parameters:
            needed = parameter.default is parameter.empty
            if parameter.kind not in VARIADIC and (needed or not required):
                names.append(parameter.name)
        return names

    def lacking(self, name: str) -> str | None:
        """Return the key of an argument that a class needs and nobody gives.

        Args:
            name: The argument.

        Returns:
            Its dotted key; None if no class is known to need it.
        """
        sections = [key.removesuffix(".class_path") for key in self.find("class_path")]
        for section in sections:
            key = f"{section}.init_args.{name}"
            if name in self.parameters(key, required=True):
                return key
        return None


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested values with their dotted keys."""
    children: Mapping[object, object] = {}
    if isinstance(value, Mapping):
        children = value
    elif isinstance(value, list):
        children = dict(enumerate(value))
    if prefix and not children:
        yield prefix, value
    for name, child in children.items():
        key = f"{prefix}.{name}"
        yield from _leaves(key.removeprefix("."), child)


def _find_imported(path: str | None) -> Any:
    """Return the object of a class path that was imported before; None if there is none."""
    from lightning.pytorch import Callback, LightningDataModule, LightningModule

    place, _, name = (path or "").rpartition(".")
    if place:
        try:
            return getattr(importlib.import_module(place), name, None)
        except Exception:  # the mistake that is being reported may be this one
            return None
    for base in (LightningModule, LightningDataModule, Callback):  # Lightning's own may be given by name alone
        for cls in _subclasses(base):
            if cls.__name__ == name:
                return cls
    return None


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = type.__subclasses__(base)
    for child in children:
        yield child
        yield from _subclasses(child)
