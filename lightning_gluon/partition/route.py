"""What is decided about one parameter: its role, its matrices and the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gluon.views import MatrixView

__all__ = ["DEFAULT_NORMS", "MATRIX_ROLES", "ROLES", "Route", "default_norm"]

MATRIX_ROLES = ("hidden", "embedding", "head")
ROLES = (*MATRIX_ROLES, "bias", "elementwise")

DEFAULT_NORMS = {"hidden": "spectral", "embedding": "sign", "head": "sign", "bias": "rms", "elementwise": "rms"}


def default_norm(role: str, views: tuple[MatrixView, ...], *, input_layer: bool = False) -> str:
    """Return the norm that method `gluon` gives a role; a kernel with several taps shows as `conv`.

    A dense input layer is stepped as the map it is, not as a table.
    """
    if input_layer:
        role = "hidden"
    if role == "hidden" and any(view.kernel > 1 for view in views):
        return "conv"
    return DEFAULT_NORMS[role]


@dataclass(frozen=True)
class Route:
    """The decision about one unique parameter tensor.

    Args:
        name: First qualified name of the parameter.
        aliases: Its other names, when the tensor is tied.
        shape: Shape of the tensor.
        role: One of `hidden`, `embedding`, `head`, `bias`, `elementwise`.
        norm: Norm of that role under method `gluon`: `spectral`, `conv`, `sign` or `rms`.
        reason: Why it has this role, one short sentence.
        views: The matrices it holds, for `hidden`, `embedding` and `head`; empty for the other roles.
        frozen: True when the parameter did not require a gradient.
        input_layer: True for an `embedding` that is a linear map of dense inputs and not a lookup table.

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
    input_layer: bool = False

    @property
    def numel(self) -> int:
        """Number of entries of the tensor."""
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the tensor, the first one first."""
        return (self.name, *self.aliases)

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes `(out, in)` of the matrices that the tensor holds."""
        return [shape for view in self.views for shape in view.shapes]
