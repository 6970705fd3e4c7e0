"""Attention modules whose heads are known: the rows of their projections by head, and the largest logit of every head.

| form | query rows | key rows |
|---|---|---|
| separate, such as `q_proj` and `k_proj` | heads | key heads, each for a group of heads |
| fused, such as `qkv` | as the tables of the partition divide it | the same |
| latent (MLA) | heads, without and with rotation | heads, without rotation; the rotated key is shared |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_gluon.partition.known.transformers import ALIASES
from lightning_gluon.partition.layers import stores_transposed
from lightning_gluon.partition.network import Network
from lightning_gluon.partition.place import look_up
from lightning_gluon.partition.splits import Split, find_split

SEPARATE = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("q_lin", "k_lin"),
    ("to_q", "to_k"),
    ("query_proj", "key_proj"),
    ("wq", "wk"),
    ("q", "k"),
)
LATENT = "kv_b_proj"
LATENT_QUERIES = ("q_b_proj", "q_proj")
HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "dim_head")
# After the projections these take away what a scaling of the projections does.
NORMS_OF_HEADS = re.compile(r"(q|k|query|key)_(layer_?)?norm|norm_[qk]|(q|k)_ln")
SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
QUERIES_AT_ONCE = 512  # queries whose logits are held at a time


@dataclass
class Projection:
    """Rows of a layer by head.

    Args:
        layer: The layer, with a `weight` of its own.
        rows: Their numbers, `(heads, size)`.
    """

    layer: nn.Module
    rows: Tensor

    def factors_(self, found: dict[nn.Module, Tensor], factors: Tensor) -> None:
        """Enter factors of the heads among those of all rows of the layers."""
        weight = _weight_of(self.layer)
        if self.layer not in found:
            count = weight.shape[-1] if stores_transposed(self.layer) else len(weight)
            found[self.layer] = torch.ones(count, dtype=factors.dtype, device=weight.device)
        spread = factors.unsqueeze(1).expand(self.rows.shape)
        found[self.layer][self.rows.to(weight.device)] = spread.to(weight.device)


def _weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


@dataclass
class AttentionHeads:
    """An attention module.

    Args:
        name: Its name.
        module: The module.
        query: Rows of the queries by head.
        key: Rows of the keys by key head; each serves as many heads as there are more of them.
        rotary: Rows of the queries that meet a key which all heads share; `None` if there are none.
    """

    name: str
    module: nn.Module
    query: Projection
    key: Projection
    rotary: Projection | None = None

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.query.rows)

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiply the logits of every head by its factor, through the weights.

            k_j <- sqrt(s_j) k_j,   q_h <- f_h / sqrt(s_j) q_h,   s_j = max of f_h over the heads h of key j

        A key is scaled no further than all of its heads want, so a head with factor 1 keeps its logits. With one head
        per key both take the root. Queries that meet a shared key take the whole factor.

        Args:
            factors: One per head, in (0, 1].
        """
        keys = len(self.key.rows)
        roots = factors.view(keys, -1).amax(1).sqrt()
        found: dict[nn.Module, Tensor] = {}
        self.key.factors_(found, roots)
        self.query.factors_(found, factors / roots.repeat_interleave(self.heads // keys))
        if self.rotary is not None:
            self.rotary.factors_(found, factors)
        for layer, rows in found.items():
            _scale_rows_(layer, rows)


def _scale_rows_(layer: nn.Module, rows: Tensor) -> None:
    """Scale the output features of a layer; those with factor 1 stay bit for bit."""
    weight, bias = _weight_of(layer), layer.bias if hasattr(layer, "bias") else None
    column = rows if stores_transposed(layer) else rows.view(-1, *(1 for _ in weight.shape[1:]))
    weight.copy_(weight * column)
    if isinstance(bias, Tensor):
        bias.copy_(bias * rows)


# ---------------------------------------------------------------------- find them


def find_attention(root: nn.Module) -> list[AttentionHeads]:
    """Return the attention modules whose heads are known.

    Args:
        root: A model.

    Returns:
        The modules, in order.

    Raises:
        ValueError: If queries or keys of one are normalised, or a projection has no weight of its own.

    Example:
        >>> block = nn.Module()
        >>> block.q_proj, block.k_proj, block.head_dim = nn.Linear(8, 8), nn.Linear(8, 4), 2
        >>> [(one.heads, len(one.key.rows)) for one in find_attention(block)]
        [(4, 2)]
    """
    network = Network(root)
    found = []
    for path, module in root.named_modules():
        finder = _Finder(network, path, module)
        attention = finder.latent() or finder.separate() or finder.fused()
        if attention is not None:
            _check_projections(attention)
            found.append(attention)
    return found


def _check_projections(attention: AttentionHeads) -> None:
    where = f"of {attention.name!r}, a {type(attention.module).__name__}"
    for name, child in attention.module.named_children():
        if NORMS_OF_HEADS.fullmatch(name) and not isinstance(child, nn.Identity):
            raise ValueError(
                f"Expected no norm between projection and logits {where}, but got `{name}`: it undoes what a scaling "
                "of the projections does. Such a model needs no clipping."
            )
    for projection in (attention.query, attention.key):
        if "weight" not in projection.layer._parameters:
            raise ValueError(
                f"Expected the projections {where} to own their weights, but got a {type(projection.layer).__name__}. "
                "Merge adapters, or take parametrizations away."
            )


@dataclass
class _Finder:
    """One module, asked whether it is attention."""

    network: Network
    path: str
    module: nn.Module

    def latent(self) -> AttentionHeads | None:
        """Return latent attention."""
        layer = self._child(LATENT)
        queries = [own for own in map(self._child, LATENT_QUERIES) if own is not None]
        plain, rotated = (getattr(self.module, f"qk_{kind}_head_dim", 0) for kind in ("nope", "rope"))
        if layer is None or not queries or not plain:
            return None
        split = self._split(LATENT, layer)
        if split is None or "k" not in split.parts:
            return None
        rows = torch.arange(_features_of(queries[0])).view(-1, plain + rotated)
        key = Projection(layer, _rows_of_part(split, "k").view(-1, plain))
        query, rotary = Projection(queries[0], rows[:, :plain]), Projection(queries[0], rows[:, plain:])
        return self._attention(query, key, rotary)

    def separate(self) -> AttentionHeads | None:
        """Return attention with a layer for the queries and one for the keys."""
        for names in SEPARATE:
            query, key = map(self._child, names)
            if query is None or key is None:
                continue
            split = self._split(names[0], query)
            gated = split is not None and "q" in split.parts
            rows = _rows_of_part(split, "q") if split is not None and gated else torch.arange(_features_of(query))
            return self._by_head(query, rows, key, torch.arange(_features_of(key)))
        return None

    def fused(self) -> AttentionHeads | None:
        """Return attention with queries and keys in one layer."""
        for name, layer in self.module.named_children():
            split = self._split(name, layer) if self._child(name) is not None else None
            if split is not None and {"q", "k"} <= set(split.parts):
                return self._by_head(layer, _rows_of_part(split, "q"), layer, _rows_of_part(split, "k"))
        return None

    def _child(self, name: str) -> nn.Module | None:
        """Return a linear layer of the module."""
        child = self.module._modules.get(name)
        weight = getattr(child, "weight", None)
        return child if isinstance(weight, Tensor) and weight.ndim == 2 else None

    def _split(self, name: str, layer: nn.Module) -> Split | None:
        path = f"{self.path}.{name}" if self.path else name
        place = self.network.place(f"{path}.weight")
        return find_split(place, _features_of(layer), _weight_of(layer).numel() // _features_of(layer))

    def _by_head(self, query: nn.Module, queries: Tensor, key: nn.Module, keys: Tensor) -> AttentionHeads | None:
        size = look_up((self.module,), *HEAD_SIZES)
        if not isinstance(size, int):
            heads = look_up((self.module,), *ALIASES["heads"])
            size = len(queries) // heads if isinstance(heads, int) else 0
        if not size or len(queries) % size or len(keys) % size:
            return None
        return self._attention(Projection(query, queries.view(-1, size)), Projection(key, keys.view(-1, size)))

    def _attention(self, query: Projection, key: Projection, rotary: Projection | None = None) -> AttentionHeads | None:
        if not len(key.rows) or len(query.rows) % len(key.rows):
            return None
        return AttentionHeads(self.path, self.module, query, key, rotary)


def _features_of(layer: nn.Module) -> int:
    """Return how many features a layer gives."""
    weight = _weight_of(layer)
    return weight.shape[-1] if stores_transposed(layer) else len(weight)


def _rows_of_part(split: Split, part: str) -> Tensor:
    """Return the numbers of a part's rows, group by group."""
    index, whole = split.parts.index(part), sum(split.sizes)
    start = sum(split.sizes[:index])
    numbers = torch.arange(split.groups * whole).view(split.groups, whole)
    return numbers[:, start : start + split.sizes[index]].flatten()


# ---------------------------------------------------------------------- their logits


class LogitMeter(TorchFunctionMode):
    """Largest logit of every head of one attention module, over all calls since it was cleared.

    It sees what goes into `scaled_dot_product_attention` or into a softmax over `(batch, heads, queries, keys)`. Pairs
    that a mask forbids do not count.

    Args:
        heads: Number of heads.
        wanted: Tells whether a call of the module counts.
    """

    def __init__(self, heads: int, wanted: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.heads = heads
        self.wanted = wanted
        self.entered = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self.top: Tensor | None = None
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at the arguments of the functions that read logits."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            self._see(_largest_logits(*args, **kwargs))
        elif func in SOFTMAX and args and args[0].ndim == 4:
            self._see(args[0].detach().amax((0, 2, 3)))
        return func(*args, **kwargs)

    def _see(self, top: Tensor) -> None:
        if len(top) == self.heads:
            top = top.to(torch.promote_types(top.dtype, torch.float32))
            self.top = top if self.top is None else torch.maximum(self.top, top)

    def before(self, module: nn.Module, args: object) -> None:
        """Begin to look, as a hook before the module's forward."""
        if self.wanted(module):
            self.entered += 1
            self.calls += 1
            self.__enter__()

    def after(self, module: nn.Module, args: object, output: object) -> None:
        """Stop looking, as a hook after it."""
        if self.entered:
            self.entered -= 1
            self.__exit__(None, None, None)


@torch.no_grad()
def _largest_logits(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the largest logit of every head; the arguments are those of `scaled_dot_product_attention`."""
    if query.ndim != 4:
        return query.new_empty(0)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    wide = torch.promote_types(query.dtype, torch.float32)
    keys = key.detach().to(wide).mT
    forbidden = _forbidden(query, key, attn_mask, is_causal)
    tops = []
    for start in range(0, query.shape[-2], QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        logits = query.detach()[..., part, :].to(wide) @ keys * scale
        if forbidden is not None:
            logits = logits.masked_fill(forbidden[..., part, :], -torch.inf)
        tops.append(logits.amax((0, 2, 3)))
    return torch.stack(tops).amax(0)


def _forbidden(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Return the pairs that do not attend: those behind the query, and those that a mask excludes."""
    queries, keys = query.shape[-2], key.shape[-2]
    if causal:
        return torch.ones(queries, keys, dtype=torch.bool, device=query.device).triu(1)
    if mask is None:
        return None
    excluded = ~mask if mask.dtype == torch.bool else mask < torch.finfo(mask.dtype).min / 2
    return excluded.expand(*excluded.shape[:-2], queries, keys)


def hooks_of(attentions: Iterable[AttentionHeads], meters: Iterable[LogitMeter]) -> Iterator[Any]:
    """Let meters look into the calls of attention modules, and yield the handles of the hooks."""
    for attention, meter in zip(attentions, meters, strict=True):
        yield attention.module.register_forward_pre_hook(meter.before)
        yield attention.module.register_forward_hook(meter.after, always_call=True)
