"""Optional packages, asked for where they are used and named by the extra that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(name: str, extra: str | None) -> ModuleType:
    """Import an optional package or say how to install it.

    Args:
        name: Dotted name of the module.
        extra: The extra of `lightning-gluon` that brings the package; None where a plain `pip install` does.

    Returns:
        The imported module.

    Raises:
        ModuleNotFoundError: If the package is not installed.

    Example:
        >>> require("json", extra=None).dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".", maxsplit=1)[0]
        if error.name is not None and error.name.split(".")[0] != package:
            raise
        command = f"pip install {package}"
        if extra:  # the recipes are in a clone of the repository, and the package is on no index yet
            command = f'pip install -e ".[{extra}]" in the root of the repository'
        raise ModuleNotFoundError(
            f"Expected `{package}` to be installed, but it is not. Run {command}.", name=package
        ) from error
