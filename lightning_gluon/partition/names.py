"""Routes where only names and shapes are known: parameters that came without their module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.knowledge import names_match
from lightning_gluon.partition.route import Route, default_norm

__all__ = ["route_by_name"]

Shape = tuple[int, ...]
_RAW_CHANNELS = 4
_GATE_COUNTS = (3, 4)


@dataclass(frozen=True)
class _Named:
    """A parameter of which only the name and the shape are known."""

    name: str
    shape: Shape
    first: bool  # the first array of two dimensions and more
    reads: Shape | None = None  # shape of the recurrent weight beside it

    @property
    def local(self) -> str:
        """Its own name."""
        return self.name.split(".")[-1]

    @property
    def layer(self) -> str:
        """Name of the layer that holds it, its numbers left out."""
        parts = [part for part in self.name.split(".")[:-1] if not part.isdigit()]
        return parts[-1] if parts else ""

    @property
    def parts(self) -> list[str]:
        """Names of all modules around it."""
        return self.name.split(".")[:-1]

    @property
    def is_vector(self) -> bool:
        """True when at most one dimension has more than one entry."""
        return sum(size != 1 for size in self.shape) <= 1


def route_by_name(named_shapes: Mapping[str, Sequence[int]] | Iterable[tuple[str, Sequence[int]]]) -> list[Route]:
    """Give parameters roles by their names and shapes alone.

    A name is evidence (`lm_head.weight`, `embed_tokens.weight`, `patch_embed.proj.weight`), but weaker than a module:
    a last layer without a telling name stays `hidden`, and fused weights are split only where the name says how.
    Pass the module to `lightning_gluon.partition` where there is one.

    Args:
        named_shapes: Name and shape of every parameter, as pairs or as a mapping, in the order of the module.

    Returns:
        One route per parameter, in the same order.

    Raises:
        ValueError: If two parameters have the same name.

    Example:
        >>> routes = route_by_name([("embed.weight", (9, 4)), ("body.weight", (4, 4)), ("lm_head.weight", (9, 4))])
        >>> [route.role for route in routes], routes[1].reason
        (['embedding', 'hidden', 'head'], 'matrix, by its shape alone')
    """
    pairs = named_shapes.items() if isinstance(named_shapes, Mapping) else named_shapes
    shapes: dict[str, Shape] = {}
    for name, shape in pairs:
        if name in shapes:
            raise ValueError(f"Expected every parameter to have a name of its own, but {name!r} comes twice.")
        shapes[name] = tuple(shape)
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    first = matrices[0] if matrices else ""
    return [_route(_Named(name, shape, name == first, _hidden_size(name, shapes))) for name, shape in shapes.items()]


def _hidden_size(name: str, shapes: Mapping[str, Shape]) -> Shape | None:
    """Return the shape of the recurrent weight that belongs to a weight of a recurrent layer."""
    return shapes.get(name.replace("weight_ih", "weight_hh")) if "weight_" in name else None


def _route(named: _Named) -> Route:
    role, reason, views = _decide(named)
    return Route(named.name, (), named.shape, role, default_norm(role, views), reason, views)


def _decide(named: _Named) -> tuple[str, str, tuple[MatrixView, ...]]:
    """Return role, reason and matrices."""
    fixed = _fixed(named)
    if fixed is not None:
        return (*fixed, ())
    views, note = _read(named)
    role, reason = _matrix_role(named)
    return role, reason + note, views


def _fixed(named: _Named) -> tuple[str, str] | None:
    """Return role and reason of a parameter that is no map."""
    no_map = ("TOKENS", "POSITIONS", "RELATIVE_POSITIONS", "SCALES", "RATES")
    own = "" if named.local in {"weight", "bias"} else named.local
    if any(names_match(table, own) for table in no_map):
        return "elementwise", f"array that is no map, by its name {own!r}"
    if named.is_vector:
        return "bias", "vector, by its shape"
    if names_match("BIASES", named.local) or names_match("GAINS", named.local):
        return "bias", f"bias or gain, by its name {named.local!r}"
    if names_match("NORM_NAMES", named.layer):
        return "bias", f"gain of a norm, by its name {named.layer!r}"
    if len(named.shape) == 2 and names_match("RELATIVE_POSITIONS", named.layer):
        return "elementwise", f"table over relative positions, by its name {named.layer!r}"
    if len(named.shape) > 2 and named.shape[1] == 1 and not named.first:
        return "elementwise", "depthwise filters, by their shape"
    return None


def _matrix_role(named: _Named) -> tuple[str, str]:
    """Return role and reason of a parameter that holds matrices."""
    layer = named.layer or named.local
    kernel = len(named.shape) > 2
    if not kernel and (names_match("TABLE_NAMES", layer) or names_match("TABLES", named.local)):
        return "embedding", f"lookup table, by its name {layer!r}"
    reading = [part for part in named.parts if names_match("INPUT_PARTS", part)]
    if reading and (not kernel or named.first or named.shape[1] <= _RAW_CHANNELS):
        return "input", f"input layer, by its name {reading[-1]!r}"
    if kernel and named.first and named.shape[1] <= _RAW_CHANNELS:
        return "input", f"input layer: the first kernel, of {named.shape[1]} channels"
    if names_match("HEADS", layer) and not names_match("NOT_HEADS", layer):
        return "head", f"output layer, by its name {layer!r}"
    return "hidden", "kernel, by its shape alone" if kernel else "matrix, by its shape alone"


def _read(named: _Named) -> tuple[tuple[MatrixView, ...], str]:
    """Read the matrices, and those of a fused weight where its name says how they lie."""
    shape = named.shape
    if len(shape) > 2:
        experts = len(shape) == 3 and any("expert" in part for part in named.parts)
        return ((MatrixView.whole(shape),), ", one per expert") if experts else ((MatrixView.conv(shape),), "")
    rows, columns = shape
    concatenated = {"qkv", "Wqkv", "to_qkv", "in_proj_weight"}.intersection((named.layer, named.local))
    if concatenated and rows == 3 * columns:
        return MatrixView.blocks(shape, sizes=(columns,) * 3), ", q + k + v fused"
    if named.layer == "c_attn" and columns == 3 * rows:
        return MatrixView.blocks(shape, sizes=(rows,) * 3, transposed=True), ", q + k + v fused, stored transposed"
    recurrent = named.reads or ()
    gates, rest = divmod(rows, recurrent[1]) if len(recurrent) == 2 else (0, 0)
    if gates in _GATE_COUNTS and not rest and recurrent[0] == rows:
        return MatrixView.blocks(shape, sizes=(rows // gates,) * gates), f", {gates} gates fused"
    return (MatrixView.whole(shape),), ""
