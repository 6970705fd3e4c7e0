"""Optional packages: imported where they are used, with one sentence on how to install what is missing."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

__all__ = ["install_hint", "require"]

# Packages whose modules have another name.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}


def require(name: str) -> ModuleType:
    """Import an optional package or say how to install it.

    Args:
        name: Dotted name of the module.

    Returns:
        The imported module.

    Raises:
        ModuleNotFoundError: If the package is not installed.

    Example:
        >>> require("json").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        missing = error.name or package
        if missing.partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"Expected `{package}` to be installed, but it is not. Run: {install_hint(package)}", name=package
        ) from error


def install_hint(package: str) -> str:
    """Return the command that installs a package in a version that works here.

    Args:
        package: Name of its module.

    Returns:
        A command for the shell. The version is the one that this package's own metadata asks for.

    Example:
        >>> install_hint("no_such_package")
        "pip install 'no_such_package'"
    """
    distribution = DISTRIBUTIONS.get(package, package)
    try:
        requirements = metadata.requires("lightning-gluon") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        requirements = []
    for requirement in requirements:
        wanted = requirement.partition(";")[0].strip()
        if _name(wanted) == _name(distribution):
            return f"pip install '{wanted}'"
    return f"pip install '{distribution}'"


def _name(requirement: str) -> str:
    """Return the name in a requirement such as `jsonargparse[signatures]>=4.51`."""
    name = requirement
    for sign in "[<>=!~ ":
        name = name.partition(sign)[0]
    return name.lower().replace("_", "-")
