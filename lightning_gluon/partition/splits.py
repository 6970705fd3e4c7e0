"""Split of the out dimension of a fused weight into several maps.

The tables say which layers are fused and by which formulas; this file reads them against the module that holds the
layer. The out dimension of a split is laid out `(groups, sum(sizes))`: one group is plain concatenation, one group per
head is what BLOOM and GPT-NeoX do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from torch import nn

from lightning_gluon.partition.formula import Value, formula_value
from lightning_gluon.partition.knowledge import names_match, table_entries
from lightning_gluon.partition.known.rows import Fused
from lightning_gluon.partition.known.transformers import ALIASES
from lightning_gluon.partition.layers import is_weight_layer
from lightning_gluon.partition.place import Place, class_names, look_up

__all__ = ["Scope", "Split", "find_split"]

_MOST_PARTS = 9
_DEPTH = 3  # how far up the module that says how its layer is fused may lie


@dataclass(frozen=True)
class Split:
    """The maps that one stored weight holds.

    Args:
        parts: Their names, for the reason (`q`, `k`, `v`).
        sizes: Rows of each part within one group.
        groups: Number of groups.
    """

    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    groups: int = 1

    @property
    def note(self) -> str:
        """Words for it in a reason."""
        text = f", {' + '.join(self.parts)} fused"
        return f"{text} in {self.groups} groups" if self.groups > 1 else text


class Scope:
    """The names that formulas may use: attributes of the holder and of what lies around it, and the layer's size."""

    def __init__(
        self,
        layer: str,
        holder: nn.Module,
        around: tuple[nn.Module, ...],
        rows: int,
        columns: int,
    ) -> None:
        self.layer = layer
        self.holder = holder
        self.around = around
        self.rows = rows
        self.columns = columns

    def value(self, name: str) -> Value:
        """Return a whole number: a size, an attribute of the holder, or of the nearest configuration that has it."""
        if name in _SIZES:
            return _SIZES[name](self)
        names = ALIASES.get(name, (name,))
        value = look_up((self.holder,), *names)
        if not isinstance(value, int):
            value = look_up(self.around, *names)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def condition(self, name: str) -> Value:
        """Return the truth of an attribute of the holder alone; layers and weights count as true."""
        if name in _SIZES:
            return _SIZES[name](self)
        value = getattr(self.holder, name, None)
        if isinstance(value, int) or value is None:
            return value
        return True

    def output_reads(self) -> int | None:
        """Return how many features the output projection of the holder reads."""
        return self._reads(*table_entries("ATTENTION_OUTPUTS"))

    def next_reads(self) -> int | None:
        """Return how many features the layer after this one reads, in the order of the holder."""
        names = [name for name, _ in self.holder.named_children()]
        after = names[names.index(self.layer) + 1 :] if self.layer in names else []
        for name in after:
            width = self._reads(name)
            if width:
                return width
        return None

    def _reads(self, *names: str) -> int | None:
        for name in names:
            module = getattr(self.holder, name, None)
            parts = module.modules() if isinstance(module, nn.Module) else ()
            for part in parts:
                if is_weight_layer(part):
                    width = look_up((part,), "in_features", "in_channels") or look_up((part,), "weight").shape[-1]
                    return int(width)
        return None


_SIZES = {
    "rows": lambda scope: scope.rows,
    "columns": lambda scope: scope.columns,
    "children": lambda scope: len(list(scope.holder.children())),
    "next_reads": Scope.next_reads,
    "output_reads": Scope.output_reads,
}


def find_split(
    place: Place,
    rows: int,
    columns: int,
) -> Split | None:
    """Return how the out dimension of a weight `(rows, columns)` divides, or None when it is one map.

    Args:
        place: Place of the weight.
        rows: Size of its out dimension.
        columns: Size of its in dimension.

    Returns:
        The split, or None.
    """
    for name, holder in place.holders[:_DEPTH]:
        if name.isdigit():
            continue
        around = place.around[place.around.index(holder) :]
        scope = Scope(name, holder, around, rows, columns)
        split = _several(scope)
        if split is not None:
            return split
        if not names_match("INNER_LAYERS", name):
            return None
    return None


def _several(scope: Scope) -> Split | None:
    """Return a split into several parts, as the holder declares it or as the tables know it."""
    split = _listed_sizes(scope) or _known(scope)
    return None if split is None or len(split.sizes) < 2 else split


def named_split(
    place: Place,
    rows: int,
    columns: int,
) -> Split | None:
    """Return how a bare array divides, whose own name stands for a layer's."""
    return _known(Scope(place.local, place.owner, place.around, rows, columns))


def _listed_sizes(scope: Scope) -> Split | None:
    """A holder that writes its split down as a list of sizes."""
    if not names_match("DECLARED_LAYERS", scope.layer):
        return None
    for attribute in table_entries("DECLARED_SIZES"):
        sizes = getattr(scope.holder, attribute, None)
        if isinstance(sizes, tuple | list) and sum(sizes) == scope.rows:
            return Split(_numbered(len(sizes)), tuple(sizes))
    return None


def _known(scope: Scope) -> Split | None:
    """A row of the tables that fits."""
    for row in table_entries("FUSED"):
        if _fits(row, scope):
            split = _divided(row, scope)
            if split is not None:
                return split
    return None


@cache
def _compiled(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _fits(
    row: Fused,
    scope: Scope,
) -> bool:
    """Tell whether a row is about this layer of this holder."""
    if not _compiled(row.layer).fullmatch(scope.layer):
        return False
    if row.holder:
        names = class_names(scope.holder)
        if not any(_compiled(row.holder).search(name) for name in names):
            return False
    return not row.when or bool(formula_value(row.when, scope.condition))


def _divided(
    row: Fused,
    scope: Scope,
) -> Split | None:
    """Divide the rows as a row of the tables says, when they divide so."""
    groups = formula_value(row.groups, scope.value)
    if not groups:
        return None
    if row.sizes:
        sizes = tuple(formula_value(size, scope.value) or 0 for size in row.sizes)
        whole = min(sizes) > 0 and sum(sizes) * groups == scope.rows
        return Split(row.parts, sizes, groups) if whole else None
    parts = row.parts or _counted(row, scope)
    if not parts:
        return None
    size, rest = divmod(scope.rows, len(parts) * groups)
    return Split(parts, (size,) * len(parts), groups) if size and not rest else None


def _counted(
    row: Fused,
    scope: Scope,
) -> tuple[str, ...]:
    """Name the parts if only their number is known."""
    count = formula_value(row.count, scope.value) if scope.columns else 0
    return _numbered(count) if count and 1 < count <= _MOST_PARTS else ()


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"part {index}" for index in range(count))
