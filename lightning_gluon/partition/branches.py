"""The order of the branches of a module, if registration order stands in for the order of execution.

* A decoder next to an encoder runs after everything that is no output, wherever it is registered.
* Parts called `final`, `out` and the like run last.
* Branches that cannot follow one another lie side by side: equal heads, two towers.

A frozen branch does not decide which layer is the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lightning_gluon.partition.knowledge import matching, names_match
from lightning_gluon.partition.layers import Widths

__all__ = ["Branch", "first_layers", "in_order", "last_layers", "may_follow"]

Paths = tuple[str, ...]
Likeness = Callable[[nn.Module, "Branch", "Branch"], bool]
_LISTS = (nn.ModuleList, nn.ModuleDict)
_BEFORE, _LATE, _LAST = range(3)


@dataclass(frozen=True)
class Branch:
    """A module with the weight layers inside it.

    Args:
        path: Its path.
        module: The module.
        layers: Paths of its weight layers in order.
        firsts: Paths of the layers that come first in it.
        ends: Paths of the layers that come last in it.
        frozen: True when it has parameters and none of them is trained.
        shapes: Widths of its layers in order.
        reads: Features that its first layer reads.
        gives: Features that its last layer gives.
        starts_with_conv: True when its first layer is a convolution.
        ends_in_conv: True when its last layer is a convolution.
    """

    path: str
    module: nn.Module
    layers: Paths
    firsts: Paths
    ends: Paths
    frozen: bool
    shapes: tuple[Widths, ...]
    reads: int | None
    gives: int | None
    starts_with_conv: bool
    ends_in_conv: bool

    @property
    def name(self) -> str:
        """Its name on the module that holds it."""
        return self.path.split(".")[-1]

    @property
    def stem(self) -> str:
        """Its name without the number at its end."""
        return self.name.rstrip("0123456789")

    @property
    def is_layer(self) -> bool:
        """True for one layer by itself."""
        return self.layers == (self.path,)


# ---- order


def in_order(branches: list[Branch]) -> list[Branch]:
    """Sort the branches of a module by when they run, as far as their names tell."""
    names = [branch.name for branch in branches]
    decoder = _first_decoder(names)
    ordered: list[Branch] = []
    for turn in (_BEFORE, _LATE, _LAST):
        for index, branch in enumerate(branches):
            if _turn(branch.name, index, decoder) == turn:
                ordered.append(branch)
    return ordered


def _first_decoder(names: list[str]) -> int | None:
    """Return the position of a decoder that stands next to an encoder."""
    late = matching("LATE_PARTS", names)
    if not late or not matching("ENCODERS", names):
        return None
    return names.index(late[0])


def _turn(
    name: str,
    index: int,
    decoder: int | None,
) -> int:
    """Return whether a branch runs before a decoder, as one, or after it."""
    if names_match("FINAL_PARTS", name):
        return _LAST
    if decoder is None:
        return _BEFORE
    if names_match("LATE_PARTS", name):
        return _LATE
    if index > decoder and names_match("HEADS", name):
        return _LAST
    return _BEFORE


# ---- first and last layers


def last_layers(
    module: nn.Module,
    inside: list[Branch],
) -> Paths:
    """Return the layers that come last: those of the last trained branch and of the branches next to it."""
    candidates = _candidates(module, inside)
    ends: Paths = ()
    if not candidates:
        return ends
    for branch in _beside(
        module,
        candidates[::-1],
        _end_alike,
    ):
        ends = branch.ends + ends
    return ends


def _candidates(module: nn.Module, inside: list[Branch]) -> list[Branch]:
    """Return the branches that may be the last one; in a sequence all of them run."""
    if isinstance(module, nn.Sequential):
        return inside
    return [branch for branch in inside if _decides(branch)] or inside


def _decides(branch: Branch) -> bool:
    """Tell whether a branch may be the last one: a frozen one only by its name."""
    return not branch.frozen or names_match("HEADS", branch.name)


def first_layers(
    module: nn.Module,
    inside: list[Branch],
) -> Paths:
    """Return the layers that come first, also of a trained branch that reads what a frozen one reads."""
    firsts: Paths = ()
    for branch in _beside(module, inside, _start_alike):
        firsts += branch.firsts
    if isinstance(module, nn.Sequential):
        return firsts
    return firsts + _firsts_beside_frozen(inside)


def _firsts_beside_frozen(inside: list[Branch]) -> Paths:
    """Return the first layers of a trained branch that reads what a frozen one before it reads."""
    alive = [branch for branch in inside if not branch.frozen]
    if not alive or not inside[0].frozen:
        return ()
    trained = alive[0]
    return trained.firsts if trained.reads == inside[0].reads else ()


def _start_alike(
    module: nn.Module,
    one: Branch,
    other: Branch,
) -> bool:
    """Tell whether two layers may start side by side."""
    return one.reads == other.reads


def _end_alike(
    module: nn.Module,
    one: Branch,
    other: Branch,
) -> bool:
    """Tell whether two layers may end side by side: in a list also those that read different features."""
    return one.reads == other.reads or isinstance(module, _LISTS)


# ---- side by side


def _beside(
    module: nn.Module,
    branches: list[Branch],
    alike: Likeness,
) -> list[Branch]:
    """Return the first branch with those next to it that run beside it."""
    if isinstance(module, nn.Sequential):
        return branches[:1]
    one, *others = branches
    found = [one]
    for other in others:
        if _side_by_side(module, one, other, alike) and not _leads_on(other, branches):
            found.append(other)
        elif not isinstance(module, _LISTS):
            break
    return found


def _side_by_side(
    module: nn.Module,
    one: Branch,
    other: Branch,
    alike: Likeness,
) -> bool:
    """Tell whether two branches of a module cannot follow one another, or are the same but for their names."""
    if type(one.module) is not type(other.module):
        return False
    apart = not may_follow(one, other)
    if one.is_layer and other.is_layer:
        return apart and alike(module, one, other)
    if one.gives is None or one.gives != other.gives:
        return False
    blocks = not isinstance(one.module, nn.Sequential)
    if isinstance(module, nn.ModuleList) and blocks:  # blocks of one class follow one another
        return apart and _wrap_equal_layers(one, other)
    if isinstance(one.module, nn.ModuleList):
        return False
    return apart or _are_twins(one, other, module)


def _wrap_equal_layers(
    one: Branch,
    other: Branch,
) -> bool:
    """Tell whether two blocks hold one layer each, of the same widths."""
    single = len(one.layers) == 1
    return single and one.shapes == other.shapes


def _are_twins(
    one: Branch,
    other: Branch,
    module: nn.Module,
) -> bool:
    """Tell whether two branches are the same but for their names, which are neither numbers nor those of a code."""
    if one.shapes != other.shapes or isinstance(module, nn.ModuleList):
        return False
    for table in ("ENCODERS", "LATE_PARTS"):
        if names_match(table, one.name):
            return False
    return one.stem != other.stem


def _leads_on(
    branch: Branch,
    branches: list[Branch],
) -> bool:
    """Tell whether another layer among the branches reads what this one gives."""
    if not branch.is_layer:
        return False
    others = [other for other in branches if other is not branch]
    return any(_feeds(branch, other) for other in others)


def may_follow(
    one: Branch,
    other: Branch,
) -> bool:
    """Tell whether one of two branches can read what the other gives."""
    return _feeds(one, other) or _feeds(other, one)


def _feeds(
    one: Branch,
    other: Branch,
) -> bool:
    """Tell whether a branch can read what one gives: as it is, gated to half of it, or flattened."""
    if one.gives is None or other.reads is None:
        return True
    if one.gives in (other.reads, 2 * other.reads):
        return True
    if other.starts_with_conv or not one.ends_in_conv:
        return False
    return other.reads % one.gives == 0
