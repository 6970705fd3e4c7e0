"""The module tree as the rules see it: its weight layers in the order in which they are taken to run.

Registration order stands in for the order of execution, with three corrections.

* A decoder beside an encoder runs after everything that is no output, wherever it is registered.
* Parts called `final`, `out` and the like run last.
* Branches that cannot follow one another lie side by side: equal heads, two towers.

A frozen branch does not decide which layer is the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_gluon.partition.knowledge import names_match
from lightning_gluon.partition.layers import Conv, Widths, is_weight_layer, widths
from lightning_gluon.partition.place import Place, is_adapter, strip_wrappers

__all__ = ["Branch", "Network", "may_follow"]

_LISTS = (nn.ModuleList, nn.ModuleDict)


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
        reads: Features that its first layer reads.
        gives: Features that its last layer gives.
    """

    path: str
    module: nn.Module
    layers: tuple[str, ...]
    firsts: tuple[str, ...]
    ends: tuple[str, ...]
    frozen: bool
    reads: int | None
    gives: int | None

    @property
    def name(self) -> str:
        """Its name on the module that holds it."""
        return self.path.split(".")[-1]

    @property
    def is_layer(self) -> bool:
        """True for one layer by itself."""
        return self.layers == (self.path,)


class Network:
    """A module tree with its weight layers.

    Args:
        root: The module to look at.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.branches: dict[str, Branch] = {}
        self._trained: dict[str, bool] = {}
        self._grow("", root)
        self.layers = self.branches[""].layers if "" in self.branches else ()

    # ---- the tree

    def _grow(self, path: str, module: nn.Module) -> Branch | None:
        """Return the branch of a module, after those inside it; None where it holds no layer."""
        inside = []
        trained = any(parameter.requires_grad for parameter in module.parameters())
        for name, child in module._modules.items():
            if child is None:
                continue
            child_path = f"{path}.{name}" if path else name
            branch = self._grow(child_path, child)
            if branch is not None:
                inside.append(branch)
        own = is_weight_layer(module) and not is_adapter(path)
        if not own and not inside:
            return None
        branch = self._joined(path, module, _in_order(inside), own=own, frozen=not trained)
        self.branches[path] = branch
        return branch

    def _joined(self, path: str, module: nn.Module, inside: list[Branch], *, own: bool, frozen: bool) -> Branch:
        """Make one branch of those inside it."""
        layers: tuple[str, ...] = (path,) if own else ()
        for branch in inside:
            layers += branch.layers
        ends = self._ends(module, inside) or layers
        firsts = layers[:1] if own else self._firsts(module, inside)
        reads = self._widths(firsts[0]).reads
        gives = self._widths(ends[0]).gives
        return Branch(path, module, layers, firsts, ends, frozen, reads, gives)

    def _widths(self, path: str) -> Widths:
        return widths(self.modules[path])

    def _ends(self, module: nn.Module, inside: list[Branch]) -> tuple[str, ...]:
        """Return the layers that come last: those of the last trained branch and of the branches beside it."""
        candidates = inside
        if not isinstance(module, nn.Sequential):
            alive = [branch for branch in inside if not branch.frozen or names_match("HEADS", branch.name)]
            candidates = alive or inside
        if not candidates:
            return ()
        ends: tuple[str, ...] = ()
        for branch in self._beside(module, candidates[::-1]):
            ends = branch.ends + ends
        return ends

    def _firsts(self, module: nn.Module, inside: list[Branch]) -> tuple[str, ...]:
        """Return the layers that come first, also of a trained branch that reads what a frozen one reads."""
        firsts: tuple[str, ...] = ()
        for branch in self._beside(module, inside):
            firsts += branch.firsts
        alive = [branch for branch in inside if not branch.frozen]
        behind = bool(alive) and inside[0].frozen and not isinstance(module, nn.Sequential)
        if behind and alive[0].reads == inside[0].reads and alive[0].reads is not None:
            firsts += alive[0].firsts
        return firsts

    def _beside(self, module: nn.Module, branches: list[Branch]) -> list[Branch]:
        """Return the first branch with those next to it that run beside it."""
        if isinstance(module, nn.Sequential):
            return branches[:1]
        one, *others = branches
        found = [one]
        for other in others:
            if self._side_by_side(module, one, other) and not _leads_on(other, branches):
                found.append(other)
            elif not isinstance(module, _LISTS):
                break
        return found

    def _side_by_side(self, module: nn.Module, one: Branch, other: Branch) -> bool:
        """Tell whether two branches of a module cannot follow one another, or are the same but for their names."""
        if type(one.module) is not type(other.module):
            return False
        if one.is_layer and other.is_layer:
            alike = one.reads == other.reads or isinstance(module, _LISTS)
            return alike and not may_follow(one, other)
        if one.is_layer or other.is_layer or one.gives != other.gives or one.gives is None:
            return False
        if isinstance(module, nn.ModuleList):
            return isinstance(one.module, nn.Sequential) and not may_follow(one, other)
        if isinstance(one.module, nn.ModuleList):
            return False
        return not may_follow(one, other) or self._are_twins(one, other)

    def _are_twins(self, one: Branch, other: Branch) -> bool:
        """Tell whether two branches are the same but for their names, which are neither numbers nor those of a code."""
        coded = any(names_match(table, one.name) for table in ("ENCODERS", "LATE_PARTS"))
        numbered = one.name.rstrip("0123456789") == other.name.rstrip("0123456789")
        return self._shapes(one) == self._shapes(other) and not coded and not numbered

    def _shapes(self, branch: Branch) -> list[Widths]:
        return [self._widths(path) for path in branch.layers]

    # ---- places

    def place(self, name: str, shape: tuple[int, ...] = ()) -> Place:
        """Locate a parameter by its qualified name."""
        path, _, local = name.rpartition(".")
        head, _, tail = path.rpartition(".")
        gain = False
        if head.split(".")[-1] == "parametrizations":  # <owner>.parametrizations.<local>.original*
            path = head.removesuffix("parametrizations").rstrip(".")
            gain = local == "original0" and hasattr(self.modules[f"{head}.{tail}"], "original1")
            local = tail
        else:
            local, gain = _own_name(self.modules[path], local)
        chain = tuple((prefix, self.modules[prefix]) for prefix in _prefixes(path))
        return Place(name, local, chain, shape, gain)

    # ---- questions

    def count(self, path: str) -> int:
        """Return the number of weight layers inside a module."""
        return len(self.branches[path].layers) if path in self.branches else 0

    def first(self, path: str) -> str | None:
        """Return the path of the first weight layer inside a module."""
        return self.branches[path].firsts[0] if path in self.branches else None

    def last(self, path: str) -> str | None:
        """Return the path of the last weight layer inside a module."""
        return self.branches[path].ends[-1] if path in self.branches else None

    def is_last(self, place: Place, path: str) -> bool:
        """Tell whether the place's owner, or a copy of it under an adapter, comes last in a module."""
        if path not in self.branches:
            return False
        ends = self.branches[path].ends
        return place.path in ends or any(strip_wrappers(end) == place.parts for end in ends)

    def leads(self, place: Place) -> str | None:
        """Return the outermost module in which the place's owner comes first."""
        for path, _ in place.chain[:-1]:
            if path in self.branches and place.path in self.branches[path].firsts:
                return path
        return None

    def in_frozen_network(self, path: str) -> bool:
        """Tell whether a module lies in a frozen part of several layers beside trained ones."""
        for prefix in _prefixes(path)[1:]:
            branch = self.branches.get(prefix)
            if branch is not None and branch.frozen and len(branch.layers) > 1:
                return not self.branches[""].frozen
        return False


def _in_order(branches: list[Branch]) -> list[Branch]:
    """Sort the branches of a module by when they run, as far as their names tell."""
    names = [branch.name for branch in branches]
    coded = any(names_match("ENCODERS", name) for name in names)
    late = [index for index, name in enumerate(names) if coded and names_match("LATE_PARTS", name)]

    def turn(index: int) -> int:
        name = names[index]
        if index in late:
            return 1
        if names_match("FINAL_PARTS", name):
            return 2
        after = bool(late) and index > late[0] and names_match("HEADS", name)
        return 2 if after else 0

    return [branches[index] for index in sorted(range(len(branches)), key=turn)]


def _leads_on(branch: Branch, branches: list[Branch]) -> bool:
    """Tell whether another layer among the branches reads what this one gives."""
    if not branch.is_layer:
        return False
    return any(_feeds(branch, other) for other in branches if other is not branch)


def may_follow(one: Branch, other: Branch) -> bool:
    """Tell whether one of two branches can read what the other gives, flattened features included."""
    return _feeds(one, other) or _feeds(other, one)


def _feeds(one: Branch, other: Branch) -> bool:
    if one.gives is None or other.reads is None:
        return True
    if one.gives == other.reads:
        return True
    flattened = _ends_in_conv(one) and not _starts_with_conv(other)
    return flattened and other.reads % one.gives == 0


def _ends_in_conv(branch: Branch) -> bool:
    return isinstance(_inside(branch, branch.ends[-1]), Conv)


def _starts_with_conv(branch: Branch) -> bool:
    return isinstance(_inside(branch, branch.firsts[0]), Conv)


def _inside(branch: Branch, path: str) -> nn.Module:
    return branch.module.get_submodule(path.removeprefix(branch.path).lstrip("."))


def _own_name(owner: nn.Module, local: str) -> tuple[str, bool]:
    """Undo `weight_norm`, `spectral_norm` and pruning: return the parameter's own name and whether it is a gain."""
    stored = owner._parameters
    for suffix in ("_g", "_v"):
        base = local.removesuffix(suffix)
        if base != local and f"{base}_g" in stored and f"{base}_v" in stored:
            return base, suffix == "_g"
    base = local.removesuffix("_orig")
    if base != local and hasattr(owner, base):
        return base, False
    return local, False


def _prefixes(path: str) -> list[str]:
    """Return the paths of all modules from the root down to `path`."""
    steps = path.split(".") if path else []
    return [".".join(steps[:count]) for count in range(len(steps) + 1)]
