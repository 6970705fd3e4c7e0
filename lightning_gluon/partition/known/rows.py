"""The forms that rows of the tables take."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Fused", "HeadRows", "MapLayout", "RawMap"]


class MapLayout(Enum):
    """Storage of a map.

    `OUT_IN` is `y = W x` with all dimensions but the last as out. `OUT_FIRST` has all but the first as in.
    `IN_FIRST` is `y = x W` with all dimensions but the first as out. `BATCH` is a stack of `(out, in)`, and
    `BATCH_IN_OUT` a stack of `(in, out)`.
    """

    OUT_IN = "out, in"
    OUT_FIRST = "out, in..."
    IN_FIRST = "in, out..."
    BATCH = "batch, out, in"
    BATCH_IN_OUT = "batch, in, out"

    @property
    def transposed(self) -> bool:
        """True when the in dimension is stored before the out dimension."""
        return self in (MapLayout.IN_FIRST, MapLayout.BATCH_IN_OUT)


@dataclass(frozen=True)
class RawMap:
    """A family of bare arrays that are maps.

    Args:
        owner: Pattern of the owner's class name, or of a base class.
        local: Pattern of the parameter's name.
        layout: How the map is stored.
        role: Its role.
        what: What the reason calls it.
    """

    owner: str
    local: str
    layout: MapLayout
    role: str = "hidden"
    what: str = "linear map between features"


@dataclass(frozen=True)
class Fused:
    """A family of weights that hold several maps along their out dimension.

    `sizes`, `groups`, `count` and `when` are formulas over the attributes of the module that holds the layer, see
    `lightning_gluon.partition.formula`. The out dimension is laid out `(groups, sum(sizes))`.

    Args:
        layer: Pattern of the layer's name.
        parts: Names of the maps in order.
        sizes: Rows of each map within one group; empty for equal sizes.
        groups: Number of groups.
        holder: Pattern of the class of the module that holds the layer, or of a base class; empty for any.
        when: Condition on the holder's own attributes; empty for none.
        count: Number of equal maps, where it varies; `parts` is empty then.
    """

    layer: str
    parts: tuple[str, ...]
    sizes: tuple[str, ...] = ()
    groups: str = "1"
    holder: str = ""
    when: str = ""
    count: str = ""


@dataclass(frozen=True)
class HeadRows:
    """The rows of one head in a family of maps; `rows` and `when` are formulas as in `Fused`.

    Args:
        part: Pattern of the map's name: that of a part of a fused weight, else that of the layer.
        rows: Rows of one head.
        when: Condition on the holder's own attributes; empty for none.
    """

    part: str
    rows: str
    when: str = ""
