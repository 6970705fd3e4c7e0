"""The module tree as the rules see it: its weight layers in the order in which they are taken to run."""

from __future__ import annotations

from torch import nn

from lightning_gluon.partition.branches import Branch, first_layers, in_order, last_layers
from lightning_gluon.partition.layers import Conv, is_weight_layer, widths
from lightning_gluon.partition.place import Place, is_adapter, strip_wrappers

__all__ = ["Network"]

_PARTS_OF_NORM = ("g", "v")  # magnitudes and directions, as weight norm calls them


class Network:
    """A module tree with its weight layers.

    Args:
        root: The module to look at.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.branches: dict[str, Branch] = {}
        self._grow("", root)
        whole = self.branches.get("")
        self.layers = () if whole is None else whole.layers

    # ---- the tree

    def _grow(
        self,
        path: str,
        module: nn.Module,
    ) -> Branch | None:
        """Return the branch of a module, after those inside it; None if it holds no layer."""
        inside = []
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
        branch = self._joined(path, in_order(inside), own=own)
        self.branches[path] = branch
        return branch

    def _joined(
        self,
        path: str,
        inside: list[Branch],
        *,
        own: bool,
    ) -> Branch:
        """Make one branch of those inside it."""
        module = self.modules[path]
        layers: tuple[str, ...] = (path,) if own else ()
        firsts = layers or first_layers(module, inside)
        for branch in inside:
            layers += branch.layers
        ends = last_layers(module, inside) or layers
        first = self.modules[firsts[0]]
        last = self.modules[ends[-1]]
        shapes = [widths(self.modules[layer]) for layer in layers]
        trained = any(parameter.requires_grad for parameter in module.parameters())
        return Branch(
            path=path,
            module=module,
            layers=layers,
            firsts=firsts,
            ends=ends,
            frozen=not trained,
            shapes=tuple(shapes),
            reads=widths(first).reads,
            gives=widths(last).gives,
            starts_with_conv=isinstance(first, Conv),
            ends_in_conv=isinstance(last, Conv),
        )

    # ---- places

    def place(
        self,
        name: str,
        shape: tuple[int, ...] = (),
    ) -> Place:
        """Locate a parameter by its qualified name."""
        path, _, local = name.rpartition(".")
        owner, local, gain = self._owned(path, local)
        chain = []
        for prefix in _prefixes(owner):
            module = self.modules[prefix]
            chain.append((prefix, module))
        return Place(
            name=name,
            local=local,
            chain=tuple(chain),
            shape=shape,
            gain=gain,
        )

    def _owned(
        self,
        path: str,
        local: str,
    ) -> tuple[str, str, bool]:
        """Undo reparametrizations: return whose parameter it is, its own name, and whether it is a gain."""
        module = self.modules[path]
        outer, _, inner = path.rpartition(".")
        stem, _, last = outer.rpartition(".")
        if last != "parametrizations":
            own, gain = _own_name(module, local)
            return path, own, gain
        gain = hasattr(module, "original1") and local.endswith("0")  # <owner>.parametrizations.<local>.original*
        return stem, inner, gain

    # ---- questions

    def count(self, path: str) -> int:
        """Return the number of weight layers inside a module."""
        branch = self.branches.get(path)
        return 0 if branch is None else len(branch.layers)

    def first(self, path: str) -> str | None:
        """Return the path of the first weight layer inside a module."""
        branch = self.branches.get(path)
        return None if branch is None else branch.firsts[0]

    def last(self, path: str) -> str | None:
        """Return the path of the last weight layer inside a module."""
        branch = self.branches.get(path)
        return None if branch is None else branch.ends[-1]

    def is_last(
        self,
        place: Place,
        path: str,
    ) -> bool:
        """Tell whether the place's owner, or a copy of it under an adapter, comes last in a module."""
        branch = self.branches.get(path)
        if branch is None:
            return False
        if place.path in branch.ends:
            return True
        ends = [strip_wrappers(end) for end in branch.ends]
        return place.parts in ends

    def leads(self, place: Place) -> str | None:
        """Return the outermost module in which the place's owner comes first."""
        for path, _ in place.chain[:-1]:
            branch = self.branches.get(path)
            if branch is not None and place.path in branch.firsts:
                return path
        return None

    def in_frozen_network(self, path: str) -> bool:
        """Tell whether a module lies in a frozen part of several layers next to trained ones."""
        for prefix in _prefixes(path)[1:]:
            branch = self.branches.get(prefix)
            if branch is not None and branch.frozen and len(branch.layers) > 1:
                return not self.branches[""].frozen
        return False


def _own_name(
    owner: nn.Module,
    local: str,
) -> tuple[str, bool]:
    """Undo `weight_norm`, `spectral_norm` and pruning: return the parameter's own name and whether it is a gain."""
    base, _, suffix = local.rpartition("_")
    if suffix in _PARTS_OF_NORM and _stores_both(owner, base):
        return base, suffix == _PARTS_OF_NORM[0]
    if suffix == "orig" and hasattr(owner, base):
        return base, False
    return local, False


def _stores_both(owner: nn.Module, base: str) -> bool:
    """Tell whether weight norm keeps the magnitudes and the directions of a weight."""
    return all(f"{base}_{suffix}" in owner._parameters for suffix in _PARTS_OF_NORM)


def _prefixes(path: str) -> list[str]:
    """Return the paths of all modules from the root down to `path`."""
    prefixes = [""]
    for step in path.split(".") if path else ():
        prefix = f"{prefixes[-1]}.{step}".lstrip(".")
        prefixes.append(prefix)
    return prefixes
