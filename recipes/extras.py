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
        target = f'"lightning-gluon[{extra}]"' if extra else package
        raise ModuleNotFoundError(
            f"Expected `{package}` to be installed, but it is not. Run: pip install {target}", name=package
        ) from error
