"""Which fused weights there are: how the out dimension of a layer divides into several maps.

Each rule reads the module that holds the layer, never the shape alone, and answers with a `Split` or with None.
The out dimension of a split is laid out `(groups, sum(sizes))`: one group is plain concatenation, one group per head
is what BLOOM and GPT-NeoX do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_gluon.partition.network import Site, class_names, is_weight_layer, look_up

__all__ = ["Layer", "Split", "find_split"]


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


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution, as the rules for fused weights see it.

    Args:
        name: Its name on the holder (`qkv`).
        holder: The module it belongs to (the attention).
        around: The holder and the modules around it, nearest first.
        rows: Size of its out dimension.
        columns: Size of its in dimension.
    """

    name: str
    holder: nn.Module
    around: tuple[nn.Module, ...]
    rows: int
    columns: int = 0

    def is_a(self, *fragments: str) -> bool:
        """Tell whether the holder's class, or one of its base classes, has one of the fragments in its name."""
        return any(fragment in name for name in class_names(self.holder) for fragment in fragments)

    def integer(self, *names: str) -> int | None:
        """Read an integer attribute of the holder, or else of the nearest configuration that has it."""
        value = look_up((self.holder,), *names)
        if not isinstance(value, int):
            value = look_up(self.around, *names)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def inputs_of(self, *names: str) -> int | None:
        """Return how many features the first of these layers of the holder reads."""
        for module in (getattr(self.holder, name, None) for name in names):
            for part in module.modules() if isinstance(module, nn.Module) else ():
                if is_weight_layer(part):
                    width = look_up((part,), "in_features", "in_channels") or look_up((part,), "weight").shape[-1]
                    return int(width)
        return None

    def next_reads(self) -> int | None:
        """Return how many features the layer after this one reads, in the order of the holder."""
        names = [name for name, _ in self.holder.named_children()]
        after = names[names.index(self.name) + 1 :] if self.name in names else []
        return next((width for name in after if (width := self.inputs_of(name))), None)

    def equal(self, *parts: str, groups: int = 1) -> Split | None:
        """Split into equal parts, when the rows divide."""
        size, rest = divmod(self.rows, len(parts) * groups)
        return Split(parts, (size,) * len(parts), groups) if size and not rest else None

    def sized(self, parts: tuple[str, ...], *sizes: int | None, groups: int | None = 1) -> Split | None:
        """Split into parts of the given sizes, when all are known and add up to the rows."""
        known = [size for size in sizes if size]
        if groups is None or len(known) != len(parts) or sum(known) * groups != self.rows:
            return None
        return Split(parts, tuple(known), groups)


_QKV = ("q", "k", "v")
_QKV_NAMES = {
    "qkv", "qkvs", "Wqkv", "wqkv", "qkv_proj", "qkv_linear", "query_key_value", "to_qkv", "in_proj_qkv", "c_attn",
    "pwise", "att_proj", "queries_keys_values",
}  # fmt: skip
# Attention whose out dimension runs over the heads first: (heads, 3, head size).
_PER_HEAD = (
    "BloomAttention", "GPTNeoXAttention", "GPTNeoXJapaneseAttention", "FalconAttention", "PersimmonAttention",
    "MiniMaxLightningAttention", "DisentangledSelfAttention", "GPTBigCodeAttention",
)  # fmt: skip


_KV_NAMES = {"kv", "to_kv", "keys_values"}


def _heads(layer: Layer) -> int | None:
    return layer.integer("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")


def _grouped_query(layer: Layer) -> Split | None:
    """Concatenated queries, keys and values with fewer key heads than query heads (Phi-3, DBRX, multi-query)."""
    heads, size = _heads(layer), layer.integer("head_dim", "head_size", "dim_head")
    shared = layer.integer("num_key_value_heads", "num_kv_heads", "num_heads_kv", "n_kv_heads", "kv_n_heads")
    if heads is None or size is None or shared is None:
        return None
    return layer.sized(_QKV, heads * size, shared * size, shared * size)


def _falcon(layer: Layer) -> Split | None:
    """Falcon: per head, multi-query concatenated, or in the newer variant per key head `(queries, k, v)`."""
    heads, size = _heads(layer), layer.integer("head_dim")
    if not layer.is_a("FalconAttention") or heads is None or size is None:
        return None
    if getattr(layer.holder, "new_decoder_architecture", False):
        shared = layer.integer("num_kv_heads") or heads
        return layer.sized(_QKV, heads // shared * size, size, size, groups=shared)
    if getattr(layer.holder, "multi_query", False):
        return layer.sized(_QKV, heads * size, size, size)
    return layer.equal(*_QKV, groups=heads)


def _unequal_heads(layer: Layer) -> Split | None:
    """Attention with its own key and value sizes: LeViT, TinyViT, EfficientFormer (per head); EfficientViT, SHViT."""
    key = getattr(layer.holder, "key_dim", None)
    value = getattr(layer.holder, "val_dim", None)
    ratio = getattr(layer.holder, "attention_ratio", None)
    if value is None and isinstance(key, int) and isinstance(ratio, int):
        value = ratio * key  # Hugging Face's LeViT
    parts, keys = (("k", "v"), (key,)) if layer.name in _KV_NAMES else (_QKV, (key, key))
    if isinstance(key, int) and isinstance(value, int):
        return layer.sized(parts, *keys, value) or layer.sized(parts, *keys, value, groups=_heads(layer))
    if layer.is_a("SHSA"):
        return layer.sized(_QKV, layer.integer("qk_dim"), layer.integer("qk_dim"), layer.integer("pdim"))
    key, value = layer.integer("dim_out_qk"), layer.integer("dim_out_v")
    return layer.sized(_QKV, key, key, value) if key and value else None


def attention(layer: Layer) -> Split | None:
    """Queries, keys and values in one weight."""
    if layer.name not in _QKV_NAMES and not (layer.name == "in_proj" and layer.is_a("DisentangledSelfAttention")):
        return None
    special = _falcon(layer) or _unequal_heads(layer) or _special_attention(layer)
    if special:
        return special
    if layer.name == "pwise":
        return None
    if layer.is_a(*_PER_HEAD) and not getattr(layer.holder, "multi_query", False):
        return layer.equal(*_QKV, groups=_heads(layer) or 1)
    if getattr(layer.holder, "head_first", False):  # timm: (heads, 3, head size)
        return layer.equal(*_QKV, groups=_heads(layer) or 1)
    return _grouped_query(layer) or layer.equal(*_QKV)


def _special_attention(layer: Layer) -> Split | None:
    """Attention that stores its parts in an order or number of its own."""
    if layer.is_a("CodeGenAttention"):  # written for 4 tensor-parallel shards: (4, q v k, rows)
        return layer.equal("q", "v", "k", groups=4)
    if layer.is_a("GPTBigCodeAttention") and getattr(layer.holder, "multi_query", False):
        kv = layer.integer("kv_dim")
        return layer.sized(_QKV, layer.integer("embed_dim"), kv, kv)
    if layer.name == "c_attn" and (width := layer.integer("split_size")) and layer.rows == 2 * width:
        return layer.equal("k", "v")  # GPT-2's cross-attention
    if layer.is_a("WindowAttentionGlobal") and getattr(layer.holder, "use_global", False):
        return layer.equal("k", "v")
    if layer.is_a("LiteMLA") and (size := layer.integer("dim")):  # timm EfficientViT: (groups, 3, dim)
        return layer.equal(*_QKV, groups=layer.rows // (3 * size))
    if layer.is_a("LambdaLayer"):  # timm: one key and one value for all heads
        key = layer.integer("dim_qk")
        return layer.sized(_QKV, key and key * (_heads(layer) or 1), key, layer.integer("dim_v"))
    if layer.name == "pwise":  # timm LowFormer and CPUBone: (heads, 3, head size)
        return layer.equal(*_QKV, groups=layer.integer("num_heads") or 1) if layer.integer("num_keys") == 3 else None
    if layer.is_a("LinearSelfAttention") and layer.rows % 2:  # MobileViT v2: one context score per position
        width = layer.rows // 2
        return layer.sized(_QKV, 1, width, width)
    return None


def key_value(layer: Layer) -> Split | None:
    """Keys and values in one weight, queries and keys in one, and DeepSeek's compressed ones."""
    if layer.name == "qk":
        return layer.equal("q", "k")
    if layer.name in _KV_NAMES:
        return _unequal_heads(layer) or layer.equal("k", "v")
    if layer.name == "kv_proj":
        heads, size = layer.integer("num_key_value_heads", "num_kv_heads"), layer.integer("head_dim")
        return layer.sized(("k", "v"), heads * size, heads * size) if heads and size else None
    rope = layer.integer("qk_rope_head_dim")
    if layer.name == "kv_a_proj_with_mqa":
        return layer.sized(("latent", "rotary key"), layer.integer("kv_lora_rank"), rope)
    if layer.name == "kv_b_proj":
        sizes = layer.integer("qk_nope_head_dim"), layer.integer("v_head_dim")
        return layer.sized(("k", "v"), *sizes, groups=_heads(layer))
    return None


def gated_query(layer: Layer) -> Split | None:
    """Queries with the gate of the attention's output, head by head (Qwen3-Next): twice what the output reads."""
    if layer.name == "q_gate_proj":
        sizes = layer.integer("qk_head_dim"), layer.integer("v_head_dim")
        return layer.sized(("q", "gate"), *sizes, groups=_heads(layer))
    if layer.name != "q_proj" or layer.rows != 2 * (layer.inputs_of("o_proj", "out_proj") or 0):
        return None
    size = layer.integer("head_dim")
    return layer.sized(("q", "gate"), size, size, groups=_heads(layer))


_GATED_NAMES = {"gate_up_proj", "gate_and_up_proj", "w12", "fc1_gate", "input_linear", "v_gate"}
# Layers that a gate may follow: it does where the next layer reads half of what they give.
_HALVED = {"fc1", "linear_1", "linear1", "pointwise_conv1", "pointwise_lin1", "linear_start", "up_conv"}


def gated(layer: Layer) -> Split | None:
    """Gate and value of a gated linear unit in one weight."""
    if layer.name in _HALVED and layer.rows == 2 * (layer.next_reads() or 0):
        return layer.equal("value", "gate")
    if layer.is_a("GatedLinearUnit", "GluPointWiseConv") and len(list(layer.holder.children())) < 3:
        return layer.equal("value", "gate")
    if layer.name in _GATED_NAMES:
        return layer.equal("gate", "up")
    if layer.name == "proj" and type(layer.holder).__name__ in {"GEGLU", "SwiGLU", "ReGLU"}:
        return layer.equal("up", "gate")
    packed = layer.name in {"fc1", "weights_in"} and layer.is_a("GluMlp", "SwiGLUPacked", "SwiGLUFFN")
    if packed or (layer.name == "Wi" and layer.is_a("ModernBert")):
        return layer.equal("gate", "up")
    return None


def state_space(layer: Layer) -> Split | None:
    """Mamba's projections: `(x, z)`, `(dt, B, C)`, and Mamba 2's `(z, x, B, C, dt)`."""
    state = layer.integer("ssm_state_size", "d_state", "state_size")
    if layer.name == "x_proj" and state:
        return layer.sized(("dt", "B", "C"), layer.integer("time_step_rank", "dt_rank"), state, state)
    if layer.name == "in_proj" and layer.is_a("ShortConv"):
        return layer.equal("B", "C", "x")
    if layer.is_a("HSMSSD") and layer.name in {"hz_proj", "BCdt_proj"}:  # timm EfficientViM
        return layer.equal("h", "z") if layer.name == "hz_proj" else layer.equal("B", "C", "dt")
    if layer.name != "in_proj" or not state or not hasattr(layer.holder, "A_log"):
        return None
    if hasattr(layer.holder, "x_proj"):
        return layer.equal("x", "z")
    if hasattr(layer.holder, "x_proj_weight"):  # Zamba stores x and z alternately
        return layer.equal("x", "z", groups=layer.rows // 2)
    inner = layer.integer("intermediate_size", "d_inner")
    mixed = (layer.integer("n_groups", "ngroups") or 1) * state
    heads = layer.integer("num_heads", "nheads")
    return layer.sized(("z", "x", "B", "C", "dt"), inner, inner, mixed, mixed, heads)


def delta_net(layer: Layer) -> Split | None:
    """Gated delta nets: Qwen3-Next's projections per key head, Qwen3.5's concatenated ones."""
    heads, values = layer.integer("num_k_heads"), layer.integer("num_v_heads")
    key, value = layer.integer("head_k_dim"), layer.integer("head_v_dim")
    if not (heads and values and key and value):
        return None
    ratio = values // heads
    if layer.name == "in_proj_qkvz":
        return layer.sized((*_QKV, "z"), key, key, ratio * value, ratio * value, groups=heads)
    if layer.name == "in_proj_ba":
        return layer.sized(("b", "a"), ratio, ratio, groups=heads)
    if layer.name == "in_proj_qkv":
        return layer.sized(_QKV, heads * key, heads * key, values * value)
    return None


_MODULATION = re.compile(r".*(ada_?ln|modulation)", re.IGNORECASE)


def modulation(layer: Layer) -> Split | None:
    """Shifts, scales and gates of an adaptive norm, as many as it says or as the features go into the rows."""
    if not _MODULATION.match(layer.name) and not layer.is_a("AdaLayerNorm", "AdaLN"):
        return None
    count = layer.integer("num_chunks") or (layer.rows // layer.columns if layer.columns else 0)
    return layer.equal(*(f"part {index}" for index in range(count))) if 1 < count < 10 else None


def declared(layer: Layer) -> Split | None:
    """A holder that writes its split down: timm's parallel blocks, MambaOut and FocalNet keep a list of sizes."""
    if (
        layer.name == "projection_in" and (levels := layer.integer("focal_level")) is not None
    ):  # Hugging Face's FocalNet
        width = (layer.rows - levels - 1) // 2
        return layer.sized(("q", "context", "gates"), width, width, levels + 1)
    if layer.name not in {"in_proj", "fc1", "f"}:
        return None
    for attribute in ("in_split", "split_indices", "input_split"):
        sizes: Any = getattr(layer.holder, attribute, None)
        if isinstance(sizes, tuple | list) and sum(sizes) == layer.rows:
            return Split(tuple(f"part {index}" for index in range(len(sizes))), tuple(sizes))
    return None


_RULES = (declared, delta_net, attention, gated_query, key_value, gated, state_space, modulation)
_INNER = {"conv", "linear", "c", "fc"}  # a convolution or linear map with its norm: `qkv.conv`, `qkvs.0.conv`


def find_split(site: Site, rows: int, columns: int) -> Split | None:
    """Return how the out dimension of a site's weight `(rows, columns)` divides, or None when it is one map."""
    for name, holder in site.holders[:3]:
        if not name.isdigit():
            around = site.around[site.around.index(holder) :]
            layer = Layer(name, holder, around, rows, columns)
            for rule in _RULES:
                split = rule(layer)
                if split is not None and len(split.sizes) > 1:
                    return split
            if name not in _INNER:
                return None
    return None
