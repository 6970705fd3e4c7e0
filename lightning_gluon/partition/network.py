"""The module tree as the rules see it: its weight layers in the order in which they are taken to run."""

from __future__ import annotations

from torch import nn

from lightning_gluon.partition.branches import Branch, first_layers, in_order, last_layers
from lightning_gluon.partition.layers import is_weight_layer, widths
from lightning_gluon.partition.place import Place, is_adapter, strip_wrappers

__all__ = ["Network"]


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
        self.layers = self.branches[""].layers if "" in self.branches else ()

    # ---- the tree

    def _grow(self, path: str, module: nn.Module) -> Branch | None:
        """Return the branch of a module, after those inside it; None where it holds no layer."""
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

    def _joined(self, path: str, inside: list[Branch], *, own: bool) -> Branch:
        """Make one branch of those inside it."""
        module = self.modules[path]
        layers: tuple[str, ...] = (path,) if own else ()
        firsts = layers or first_layers(module, inside)
        for branch in inside:
            layers += branch.layers
        ends = last_layers(module, inside) or layers
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
            reads=widths(self.modules[firsts[0]]).reads,
            gives=widths(self.modules[ends[0]]).gives,
        )

    # ---- places

    def place(
        self,
        name: str,
        shape: tuple[int, ...] = (),
    ) -> Place:
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

    def is_last(
        self,
        place: Place,
        path: str,
    ) -> bool:
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


def _own_name(
    owner: nn.Module,
    local: str,
) -> tuple[str, bool]:
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
