"""The module tree as the rules see it: who owns a parameter, what lies around it, which layer comes first and last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

__all__ = ["Network", "Site", "class_names", "is_lora", "is_weight_layer", "look_up", "strip_wrappers"]

# Wrappers that hold a layer under another name: peft, torch.compile, DDP, FSDP, activation checkpointing.
_LAYERS = (nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention, nn.Bilinear)
_WRAPPERS = {"base_layer", "original_module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def class_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's class and of its base classes, most specific first."""
    return tuple(cls.__name__ for cls in type(module).__mro__)


def strip_wrappers(path: str) -> tuple[str, ...]:
    """Return the components of a path without those that wrappers and adapters put in."""
    parts: list[str] = []
    skip = False
    for part in path.split(".") if path else []:
        if skip:  # the adapter's name in peft: `lora_B.default`, `modules_to_save.default`
            skip = False
        elif part == "modules_to_save" or part.startswith("lora_"):
            skip = True
        elif part not in _WRAPPERS:
            parts.append(part)
    return tuple(parts)


def is_lora(path: str) -> bool:
    """Tell whether a module is part of an adapter rather than of the network itself."""
    return any(part.startswith(("lora_", "adalora_", "vera_")) for part in path.split("."))


def is_weight_layer(module: nn.Module) -> bool:
    """Tell whether a module maps inputs by a weight of its own: a linear map, a convolution or a lookup table."""
    weight = getattr(module, "weight", None)
    if isinstance(module, _LAYERS):
        return True
    own = module._parameters.get("weight")
    if own is not None and own.ndim > 1 and type(module).__name__.endswith("Linear"):  # not a subclass of torch's
        return True
    return (isinstance(module, nn.Linear) or "Conv1D" in class_names(module)) and getattr(weight, "ndim", 0) > 1


def look_up(modules: tuple[nn.Module, ...], *names: str) -> Any:
    """Return the first value found under any of the names on these modules, or else on their configurations."""
    for module in modules:
        for name in names:
            value = getattr(module, name, None)
            if value is not None:
                return value
    for module in modules:
        config = getattr(module, "config", None)
        for name in names:
            try:
                value = getattr(config, name, None)
            except Exception:  # a configuration whose layers differ answers no question about all of them
                value = None
            if value is not None:
                return value
    return None


@dataclass(frozen=True)
class Site:
    """One place where a parameter hangs in the module tree.

    Args:
        name: Qualified name of the parameter.
        local: Its name on the owning module (`weight`), seen through parametrizations and weight norm.
        chain: `(path, module)` from the root down to the owning module, wrappers left out.
        part: What a reparametrization stores here: `whole`, or `gain` for the magnitudes of weight norm.
    """

    name: str
    local: str
    chain: tuple[tuple[str, nn.Module], ...]
    part: str = "whole"

    @property
    def owner(self) -> nn.Module:
        """The module that owns the parameter."""
        return self.chain[-1][1]

    @property
    def path(self) -> str:
        """Qualified name of the owning module."""
        return self.chain[-1][0]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Components of the owner's path, without wrappers."""
        return strip_wrappers(self.path)

    @cached_property
    def holders(self) -> tuple[tuple[str, nn.Module], ...]:
        """`(component, module that holds it)` from the owner upwards: the layer's own name and whose layer it is."""
        found, path = [], self.path
        modules = dict(self.chain)
        while path:
            parent, _, part = path.rpartition(".")
            if strip_wrappers(path) != strip_wrappers(parent):
                found.append((part, modules[parent]))
            path = parent
        return tuple(found)

    def ancestors(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield `(path, module)` from the owner's parent up to the root."""
        yield from reversed(self.chain[:-1])

    @property
    def around(self) -> tuple[nn.Module, ...]:
        """The owner and all modules around it, nearest first."""
        return tuple(module for _, module in reversed(self.chain))


def _weight_norm_name(owner: nn.Module, local: str) -> tuple[str, str]:
    """Undo `weight_norm` and `spectral_norm`: return the parameter's own name and which part of it is stored."""
    for suffix, part in (("_g", "gain"), ("_v", "whole"), ("_orig", "whole")):
        base = local.removesuffix(suffix)
        if base != local and hasattr(owner, base) and base in ("weight", "bias"):
            return base, part
    return local, "whole"


class Network:
    """A module tree with its weight layers in registration order.

    Args:
        root: The module to look at.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules = dict(root.named_modules(remove_duplicate=False))
        layers = (path for path, module in self.modules.items() if is_weight_layer(module) and not is_lora(path))
        self.layers: tuple[str, ...] = tuple(layers)
        self.spans: dict[str, tuple[int, int]] = {}  # module -> its first and last weight layer
        for index, path in enumerate(self.layers):
            for prefix in _prefixes(path):
                self.spans[prefix] = (self.spans.get(prefix, (index, index))[0], index)

    def site(self, name: str) -> Site:
        """Locate a parameter by its qualified name."""
        path, _, local = name.rpartition(".")
        part = "whole"
        head, _, tail = path.rpartition(".")
        if head.split(".")[-1] == "parametrizations":  # <owner>.parametrizations.<local>.original*
            path = head.removesuffix("parametrizations").rstrip(".")
            part = "gain" if local == "original0" and hasattr(self.modules[f"{head}.{tail}"], "original1") else "whole"
            local = tail
        else:
            local, part = _weight_norm_name(self.modules[path], local)
        chain = tuple((prefix, self.modules[prefix]) for prefix in _prefixes(path))
        return Site(name, local, chain, part)

    def count(self, path: str) -> int:
        """Return the number of weight layers inside a module."""
        first, last = self.spans.get(path, (0, -1))
        return last - first + 1

    def first(self, path: str) -> str | None:
        """Return the path of the first weight layer inside a module."""
        return self.layers[self.spans[path][0]] if path in self.spans else None

    def last(self, path: str) -> str | None:
        """Return the path of the last weight layer inside a module."""
        return self.layers[self.spans[path][1]] if path in self.spans else None

    def is_last(self, site: Site, path: str) -> bool:
        """Tell whether the site's owner, or a copy of it under an adapter, is the last weight layer of a module."""
        last = self.last(path)
        return last is not None and (last == site.path or strip_wrappers(last) == site.parts)

    def leads(self, site: Site) -> str | None:
        """Return the outermost module whose first weight layer is the site's owner."""
        return next((path for path, _ in site.chain[:-1] if self.first(path) == site.path), None)


def _prefixes(path: str) -> list[str]:
    """Return the paths of all modules from the root down to `path`."""
    steps = path.split(".") if path else []
    return [".".join(steps[:count]) for count in range(len(steps) + 1)]
