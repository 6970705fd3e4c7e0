"""The roles of parameters, and their looks in tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Role:
    """One role.

    Args:
        summary: What parameters of this role are.
        matrices: Whether they hold matrices, `(out, in)`; else they are stepped as one vector.
        style: Colour in printed tables.
        colour: Colour in pictures; the eight colours are told apart by people who see few.
        dashes: Line style in pictures; roles that often coincide have different ones.
        tie: Place among the roles of a tied tensor: the first one wins.
    """

    summary: str
    matrices: bool
    style: str
    colour: str
    dashes: Any
    tie: int


ROLES: dict[str, Role] = {
    "hidden": Role("linear maps and convolutions between features", True, "cyan", "#0072B2", "-", 4),
    "input": Role("linear maps of dense inputs", True, "green", "#D55E00", "-", 1),
    "embedding": Role("lookup tables", True, "bright_green", "#E69F00", "-", 0),
    "head": Role("output layers", True, "magenta", "#009E73", (0, (5, 2)), 2),
    "adapter": Role("factors of low-rank changes", True, "bright_blue", "#999999", (0, (3, 1, 1, 1)), 7),
    "router": Role("maps to the experts of a mixture", True, "red", "#000000", (0, (3, 1, 1, 1, 1, 1)), 3),
    "bias": Role("biases, gains, scales and other vectors", False, "yellow", "#CC79A7", (0, (1, 1)), 6),
    "elementwise": Role("arrays that are no map", False, "blue", "#56B4E9", (0, (5, 1, 1, 1)), 5),
}
MATRIX_ROLES = tuple(name for name, role in ROLES.items() if role.matrices)
