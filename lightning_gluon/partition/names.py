"""Routes by names and shapes alone: parameters that came without their module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.evidence import RAW_CHANNELS
from lightning_gluon.partition.knowledge import matching, names_match
from lightning_gluon.partition.layouts import Read
from lightning_gluon.partition.place import Shape
from lightning_gluon.partition.route import Route, default_norm

__all__ = ["route_by_name"]

Guess = tuple[str, str, tuple[MatrixView, ...]]
_GATE_COUNTS = (3, 4)
_OTHER_LAYERS = (
    "TOKENS",
    "POSITIONS",
    "RELATIVE_POSITIONS",
    "SCALES",
    "RATES",
)
_VECTORS = ("BIASES", "GAINS")
# Layers whose rows are queries, keys and values one after the other.
_FUSED_NAMES = {
    "qkv",
    "Wqkv",
    "to_qkv",
    "in_proj_weight",
}
_FUSED_TRANSPOSED = ("c_attn",)
_QKV_TEXT = ", q + k + v fused"


@dataclass(frozen=True)
class _NamedParameter:
    """A parameter of which only the name and the shape are known."""

    name: str
    shape: Shape
    first: bool  # the first array of two dimensions and more
    hidden: Shape | None = None  # shape of the hidden weight of the same recurrent layer
    routes: bool = False  # the name is that of a router, with experts beside it

    @property
    def local(self) -> str:
        """Its own name."""
        return self.name.split(".")[-1]

    @property
    def own(self) -> str:
        """Its own name if it is one that tells."""
        return "" if self.local in ("weight", "bias") else self.local

    @property
    def layer(self) -> str:
        """Name of the layer that holds it, its numbers left out."""
        for part in reversed(self.parts):
            if not part.isdigit():
                return part
        return ""

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
    a last layer without a telling name stays `hidden`, and fused weights are split only if the name says how.
    Pass the module to `lightning_gluon.partition` if there is one.

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
    mixtures = _mixtures(shapes)
    routes = []
    first = True
    for name, shape in shapes.items():
        array = len(shape) > 1
        named = _NamedParameter(
            name=name,
            shape=shape,
            first=first and array,
            hidden=_hidden_shape(name, shapes),
            routes=_is_beside(name, mixtures),
        )
        first = first and not array
        role, reason, views = _decide(named)
        route = Route(
            name=name,
            aliases=(),
            shape=shape,
            role=role,
            norm=default_norm(role, views),
            reason=reason,
            views=views,
        )
        routes.append(route)
    return routes


def _mixtures(names: Iterable[str]) -> set[str]:
    """Return the paths of modules that hold experts."""
    found = set()
    for name in names:
        parts = name.split(".")
        for index, part in enumerate(parts[:-1]):
            if names_match("EXPERT_PARTS", part):
                found.add(".".join(parts[:index]))
    return found


def _is_beside(name: str, mixtures: set[str]) -> bool:
    """Tell whether a weight has the name of a router and lies in a module that holds experts."""
    *path, layer, own = ["", *name.split(".")]
    return own == "weight" and names_match("ROUTER_LAYERS", layer) and ".".join(path[1:]) in mixtures


def _hidden_shape(name: str, shapes: Mapping[str, Shape]) -> Shape | None:
    """Return the shape of the hidden weight that belongs to a weight of a recurrent layer."""
    if "weight_" not in name:
        return None
    hidden = name.replace("weight_ih", "weight_hh")
    return shapes.get(hidden)


def _decide(named: _NamedParameter) -> Guess:
    """Return role, reason and matrices."""
    fixed = _fixed(named)
    if fixed is not None:
        role, reason = fixed
        return role, reason, ()
    views, note = _read_matrices(named)
    role, reason = _matrix_role(named)
    return role, reason + note, views


def _fixed(named: _NamedParameter) -> tuple[str, str] | None:
    """Return role and reason of a parameter that is no map."""
    kernel = len(named.shape) > 2
    if any(names_match(table, named.own) for table in _OTHER_LAYERS):
        return "elementwise", f"array that is no map, by its name {named.own!r}"
    if named.is_vector:
        return "bias", "vector, by its shape"
    if any(names_match(table, named.local) for table in _VECTORS):
        return "bias", f"bias or gain, by its name {named.local!r}"
    if names_match("NORM_NAMES", named.layer):
        return "bias", f"gain of a norm, by its name {named.layer!r}"
    return _filter_role(named) if kernel else _position_role(named)


def _filter_role(named: _NamedParameter) -> tuple[str, str] | None:
    """Return role and reason of kernels that read one channel each."""
    if named.shape[1] == 1 and not named.first:
        return "elementwise", "depthwise filters, by their shape"
    return None


def _position_role(named: _NamedParameter) -> tuple[str, str] | None:
    """Return role and reason of a table over relative positions."""
    if names_match("RELATIVE_POSITIONS", named.layer):
        return "elementwise", f"table over relative positions, by its name {named.layer!r}"
    return None


def _matrix_role(named: _NamedParameter) -> tuple[str, str]:
    """Return role and reason of a parameter that holds matrices."""
    layer = named.layer or named.local
    if named.routes:
        return "router", f"router, by its name {layer!r} beside experts"
    if len(named.shape) == 2 and _is_table(named, layer):
        return "embedding", f"lookup table, by its name {layer!r}"
    reason = _input_by_name(named)
    if reason is not None:
        return "input", reason
    if names_match("HEADS", layer) and not names_match("NOT_HEADS", layer):
        return "head", f"output layer, by its name {layer!r}"
    what = "kernel" if len(named.shape) > 2 else "matrix"
    return "hidden", f"{what}, by its shape alone"


def _input_by_name(named: _NamedParameter) -> str | None:
    """Return why a parameter belongs to an input layer, or None."""
    kernel = len(named.shape) > 2
    raw = kernel and named.shape[1] <= RAW_CHANNELS
    reading = matching("INPUT_PARTS", named.parts)
    if reading and (raw or named.first or not kernel):
        return f"input layer, by its name {reading[-1]!r}"
    if raw and named.first:
        return f"input layer: the first kernel, of {named.shape[1]} channels"
    return None


def _is_table(named: _NamedParameter, layer: str) -> bool:
    """Tell whether a matrix has the name of a lookup table."""
    return names_match("TABLE_NAMES", layer) or names_match("TABLES", named.local)


def _read_matrices(named: _NamedParameter) -> Read:
    """Read the matrices, and those of a fused weight if its name says how they lie."""
    if len(named.shape) > 2:
        return _read_kernel(named)
    rows, columns = named.shape
    if _FUSED_NAMES.intersection((named.layer, named.local)) and rows == 3 * columns:
        return MatrixView.blocks(named.shape, sizes=(columns,) * 3), _QKV_TEXT
    if named.layer in _FUSED_TRANSPOSED and columns == 3 * rows:
        views = MatrixView.blocks(
            named.shape,
            sizes=(rows,) * 3,
            transposed=True,
        )
        return views, f"{_QKV_TEXT}, stored transposed"
    gates = _gate_count(named)
    if gates in _GATE_COUNTS:
        sizes = (rows // gates,) * gates
        return MatrixView.blocks(named.shape, sizes=sizes), f", {gates} gates fused"
    return (MatrixView.whole(named.shape),), ""


def _read_kernel(named: _NamedParameter) -> Read:
    """Read a convolution's kernel, or stacked experts."""
    stacked = any("expert" in part for part in named.parts)
    if stacked and len(named.shape) == 3:
        return (MatrixView.whole(named.shape),), ", one per expert"
    return (MatrixView.conv(named.shape),), ""


def _gate_count(named: _NamedParameter) -> int:
    """Return how many gates a recurrent weight holds; 0 if it is none."""
    hidden = named.hidden
    if hidden is None or len(hidden) != 2:
        return 0
    gates, rest = divmod(named.shape[0], hidden[1])
    same = hidden[0] == named.shape[0] and not rest
    return gates if same else 0
