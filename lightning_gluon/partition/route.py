"""The decision about one parameter: its role, its matrices and the reason."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lightning_gluon.methods import METHODS
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.finding import OtherFactor

__all__ = ["BLOCK_INDEX", "Route", "default_norm"]

BLOCK_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # the number of a block, as a part of a parameter's name

# Roles whose kernels are maps per tap.
_SPECTRAL_ROLES = tuple(role for role, rule in METHODS["gluon"].rules.items() if rule.norm == "spectral")


def default_norm(
    role: str,
    views: tuple[MatrixView, ...],
) -> str:
    """Return the norm that method `gluon` gives a role; a kernel with several taps shows as `conv`."""
    norm = METHODS["gluon"].rules[role].norm
    taps = any(view.kernel > 1 for view in views)
    return "conv" if taps and role in _SPECTRAL_ROLES else norm


@dataclass(frozen=True)
class Route:
    """The decision about one unique parameter tensor.

    Args:
        name: First qualified name of the parameter.
        aliases: Its other names, when the tensor is tied.
        shape: Shape of the tensor.
        role: One of `lightning_gluon.roles.ROLES`.
        norm: Norm of that role under method `gluon`: `spectral`, `conv`, `sign`, `centred_row` or `rms`.
        reason: Why it has this role, one short sentence.
        views: The matrices it holds, for the roles that hold matrices; empty for the other roles.
        frozen: True when the parameter did not require a gradient.
        pair: The other factor of the product that the parameter belongs to, by name, with the factor of the product.

    Example:
        >>> route = Route("fc.bias", (), (3,), "bias", "rms", "bias of a Linear")
        >>> route.numel, route.matrices
        (3, [])
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    role: str
    norm: str
    reason: str
    views: tuple[MatrixView, ...] = ()
    frozen: bool = False
    pair: OtherFactor | None = None

    @property
    def numel(self) -> int:
        """Number of entries of the tensor."""
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensor, the first one first."""
        return (self.name, *self.aliases)

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes `(out, in)` of the matrices that the tensor holds."""
        return [shape for view in self.views for shape in view.shapes]
