"""The rules: what a parameter is, from the module that owns it. The first rule that answers decides.

A rule takes a `Case` and returns a `Finding` or None. Vectors and scalars come last among the arrays that are no map,
so that a class token of shape `(dim,)` is still a token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.evidence import Evidence
from lightning_gluon.partition.layouts import expert_views, is_depthwise, layer_views, recurrent_views
from lightning_gluon.partition.network import Site, class_names, is_weight_layer
from lightning_gluon.partition.raw_maps import find_raw_map

__all__ = ["Case", "Finding", "decide"]

_Conv = nn.modules.conv._ConvNd
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Finding:
    """A role with its reason and matrices."""

    role: str
    reason: str
    views: tuple[MatrixView, ...] = ()


@dataclass(frozen=True)
class Case:
    """One place of a parameter, with everything a rule may look at."""

    site: Site
    shape: tuple[int, ...]
    evidence: Evidence

    @property
    def owner(self) -> nn.Module:
        """The module that owns the parameter."""
        return self.site.owner

    @property
    def kind(self) -> str:
        """Class name of the owner."""
        return type(self.site.owner).__name__

    def owned_by(self, *fragments: str) -> bool:
        """Tell whether the owner's class, or a base class, has one of the fragments in its name."""
        return any(fragment in name for name in class_names(self.owner) for fragment in fragments)

    @property
    def label(self) -> str:
        """The parameter's name as its module means it: members of a ParameterList or -Dict go by the name of that."""
        if isinstance(self.owner, nn.ParameterList | nn.ParameterDict) and self.site.holders:
            return self.site.holders[0][0]
        return self.site.local

    @property
    def is_vector(self) -> bool:
        """True when at most one dimension has more than one entry."""
        return sum(size != 1 for size in self.shape) <= 1


_POSITION = re.compile(r"(.*_)?(abs_)?pos(ition|itional)?_?(emb|embed|embeds|enc|encoding|embedding|embeddings)?"
                       r"(_.+|\d+)?$|pos$|.*_pos$|time_embeddings$")  # fmt: skip
_RELATIVE = re.compile(r"(.*_)?rel(ative)?_(pos|position|attention|emb|embeddings|bias)\w*|.*_rel(_[a-z])?$|rpb$"
                       r"|emb_rel_\w|attention_biases$|position_bias$|distance_embedding$|pos_bias_\w$|bias_values$|pe_k$"
                       r"|rel_\w*(embed|embeddings?)$|index_kpool_compress_ape$")  # fmt: skip
_TOKEN = re.compile(
    r".*tokens?(_\w+|\d+)?$|cls(_emb\w*)?$|class_(embedding|pos_emb)$|.*mask(ed)?_(spec_)?emb\w*$|latents?(_\dd|_query)?$|probe$|pad_(up|down|left|right)$"
    r"|(.+_)?quer(y|ies)(_embed|_tokens)?$|image_\w+$|view_separator$|(.+_)?(level|seg|segment)_embed\w*$|dummy_node$"
    r"|(.+_)?prompts?(_\w+)?$|.*_latents?$|\w+_init$"
)
_SCALE = re.compile(r"(.*_)?(logit|reg|video|text)?_?logit_(scale|bias)\w*$|(.*_)?temp(erature)?$|logit_scale\w*$")
_DYNAMICS = re.compile(r"A(_log|_logs)?$|log_(A|dt|k|delta|state_decay)$|time_(decay|first|faaaa)$|A_\w+$")
_BIAS = re.compile(r"(.*_)?bias(es|_\w+)?$")
_GAIN = re.compile(r"(D|layer_?scale|ls|gamma|alpha|beta|scale|res_scale|skip_scale)(_?\w)?$")
_FACTOR = re.compile(r"(((ada|de)?lora|hira)_[AB]|hada_w\d_[ab]|lokr_w\d(_[ab])?)$")
_RELATIVE_CLASS = re.compile(r".*(Relative|RelPos).*")
_POSITION_CLASS = re.compile(r"Position(al)?(Embed|Enc)|PosEmb|PosEnc|Relative(Logits|PositionBias)|RotaryEmb")


def adapter_table(case: Case) -> Finding | None:
    """Adapter (peft) of a lookup table: the first factor is a table, the second a map."""
    part = next((p for p in case.site.path.split(".") if p.startswith("lora_embedding_")), None)
    if part is None or len(case.shape) != 2:
        return None
    if part.endswith("A"):
        return Finding("embedding", "LoRA factor of a lookup table", (MatrixView.whole(case.shape, transposed=True),))
    return Finding("hidden", "LoRA factor", (MatrixView.whole(case.shape),))


def adapter_factor(case: Case) -> Finding | None:
    """Low-rank factors that an adapter (peft) keeps as bare arrays `(out, in)`: AdaLoRA, DeLoRA, HiRA, LoHa, LoKr."""
    if len(case.shape) == 2 and _FACTOR.match(case.site.path.split(".")[-1]):
        return Finding("hidden", "low-rank factor of an adapter", (MatrixView.whole(case.shape),))
    return None


def lookup_table(case: Case) -> Finding | None:
    """Tables: one row per entry."""
    table = isinstance(case.owner, nn.Embedding | nn.EmbeddingBag)
    if case.site.local != "weight" or len(case.shape) != 2:
        return None
    if not table and not (case.owned_by("Embedding") and not is_weight_layer(case.owner)):
        return None
    name = case.site.holders[0][0] if case.site.holders else ""
    if _RELATIVE.match(name) or _RELATIVE_CLASS.match(case.kind):
        return Finding("elementwise", f"table over relative positions ({name})")
    return Finding("embedding", f"lookup table ({case.kind})", (MatrixView.whole(case.shape),))


def gain_of_weight_norm(case: Case) -> Finding | None:
    """The magnitudes that weight norm takes out of a weight."""
    return Finding("bias", "magnitudes of weight norm") if case.site.part == "gain" else None


def norm_gain(case: Case) -> Finding | None:
    """Gains and biases of normalisation layers, whatever their shape."""
    what = {"weight": "gain", "gamma": "gain", "bias": "bias", "beta": "bias"}.get(case.site.local)
    if what and case.owned_by("Norm") and not is_weight_layer(case.owner):
        return Finding("bias", f"{what} of {case.kind}")
    return None


def weight_of_layer(case: Case) -> Finding | None:
    """Linear layers and convolutions: input layer, output layer, filter, or map between features."""
    site, owner = case.site, case.owner
    if site.local != "weight" or not is_weight_layer(owner) or len(case.shape) < 2:
        return None
    if is_depthwise(owner):
        return Finding("elementwise", f"depthwise filters ({case.kind}): each channel by itself, no map")
    views, note = layer_views(site, case.shape)
    if reason := case.evidence.head_reason(site):
        return Finding("head", reason + note, views)
    if reason := case.evidence.input_reason(site):
        if isinstance(owner, _Conv) and tuple(owner.stride) == tuple(owner.kernel_size):  # patches: no tap is shared
            views = tuple(replace(view, kernel=1) for view in views)
        return Finding("input", reason + note, views)
    if any(part.startswith("lora_") for part in site.path.split(".")):
        return Finding("hidden", "LoRA factor" + note, views)
    verb = "convolution" if isinstance(owner, _Conv) else "linear map"
    return Finding("hidden", f"{verb} between features ({case.kind}){note}", views)


def attention_projection(case: Case) -> Finding | None:
    """`torch.nn.MultiheadAttention`: fused or separate projections of its own."""
    local = case.site.local
    if local == "in_proj_weight" and len(case.shape) == 2:
        views = MatrixView.blocks(case.shape, sizes=(case.shape[0] // 3,) * 3)
        return Finding("hidden", f"attention projection ({case.kind}), q + k + v fused", views)
    if local in {"q_proj_weight", "k_proj_weight", "v_proj_weight"} and len(case.shape) == 2:
        return Finding("hidden", f"attention projection ({case.kind})", (MatrixView.whole(case.shape),))
    return None


def recurrent_weight(case: Case) -> Finding | None:
    """Weights of LSTM, GRU and RNN."""
    if isinstance(case.owner, _RECURRENT) and case.site.local.startswith("weight_"):
        views, note = recurrent_views(case.site, case.shape)
        return Finding("hidden", f"recurrent map ({case.kind}){note}", views)
    return None


def experts(case: Case) -> Finding | None:
    """Experts stacked in one parameter."""
    names = {"gate_up_proj", "down_proj", "up_proj", "gate_proj", "w1", "w2", "w3", "v1", "weight"}
    if len(case.shape) < 2 or case.site.local not in names or not case.owned_by("Expert"):
        return None
    if case.owned_by("Router", "Gate") or (case.site.local == "weight" and len(case.shape) < 3):
        return None
    if len(case.shape) == 2 and not any(hasattr(case.owner, n) for n in ("moe_num_experts", "num_experts")):
        return None
    views, note = expert_views(case.site, case.shape)
    return Finding("hidden", f"maps between features ({case.kind}){note}", views)


def mixed_convolution(case: Case) -> Finding | None:
    """Kernels of several experts in one row each, mixed by example before use (timm's `CondConv2d`)."""
    kernel = getattr(case.owner, "weight_shape", None)
    if case.site.local != "weight" or not isinstance(kernel, tuple) or case.shape[1:] != (math.prod(kernel),):
        return None
    if kernel[1] == 1 < kernel[0]:
        return Finding("elementwise", f"depthwise filters ({case.kind}): each channel by itself, no map")
    view = MatrixView.conv((case.shape[0] * kernel[0], *kernel[1:]), groups=case.shape[0])
    views = (replace(view, stop=case.shape[0]),)
    return Finding("hidden", f"convolution between features ({case.kind}), {case.shape[0]} experts", views)


def router(case: Case) -> Finding | None:
    """Routers and other maps that are kept as a bare `weight`."""
    if case.site.local != "weight" or len(case.shape) != 2 or is_weight_layer(case.owner):
        return None
    if case.owned_by("Router", "Gate", "Gating", "TopK"):
        return Finding("hidden", f"router: linear map to the experts ({case.kind})", (MatrixView.whole(case.shape),))
    if case.owned_by("Linear", "Dense", "Projection"):
        return Finding("hidden", f"linear map between features ({case.kind})", (MatrixView.whole(case.shape),))
    return None


def bilinear(case: Case) -> Finding | None:
    """`torch.nn.Bilinear`: one matrix per output."""
    if isinstance(case.owner, nn.Bilinear) and case.site.local == "weight":
        return Finding("hidden", "bilinear map, one matrix per output", (MatrixView.whole(case.shape),))
    return None


def shared_space(case: Case) -> Finding | None:
    """OpenAI's CLIP keeps its output projections as bare arrays stored `(in, out)`."""
    towers = any(hasattr(case.owner, name) for name in ("class_embedding", "positional_embedding"))
    if len(case.shape) == 2 and case.site.local in {"proj", "text_projection", "visual_projection"} and towers:
        views = (MatrixView.whole(case.shape, transposed=True),)
        return Finding("head", "output layer: projects into the shared space, stored transposed", views)
    return None


def raw_map(case: Case) -> Finding | None:
    """Maps kept as bare arrays by modules we know."""
    known = find_raw_map(case.site, case.shape)
    if known is None:
        return None
    entry, (views, note) = known
    what = "output layer" if entry.role == "head" else "linear map between features"
    return Finding(entry.role, f"{what} kept as a bare array ({case.kind}.{case.site.local}){note}", views)


def codebook(case: Case) -> Finding | None:
    """Code vectors that are looked up."""
    if case.site.local in {"codevectors", "codebook", "label_embeddings_concat"} and len(case.shape) >= 2:
        return Finding("embedding", "lookup table of code vectors", (MatrixView.whole(case.shape),))
    return None


_NO_MAP = (
    (_RELATIVE, "relative-position table: added to scores, no map"),
    (_SCALE, "logit scale: multiplies scores, no map"),
    (_TOKEN, "learned token: added to or put beside the inputs, no map"),
    (_POSITION, "learned positions: added to the inputs, no map"),
    (re.compile(r"static_weight$"), "depthwise filters: each channel by itself, no map"),
    (_DYNAMICS, "table of a recurrence's rates: acts entry by entry, no map"),
)


def no_map(case: Case) -> Finding | None:
    """Bare arrays that act entry by entry: tokens, positions, relative positions, logit scales, rates."""
    local = case.label
    if local in {"weight", "bias"}:
        return None
    for pattern, reason in _NO_MAP:
        if pattern.match(local):
            return Finding("elementwise", f"{reason} ({local})")
    gain = len(case.shape) < 2 or _GAIN.match(local)
    if not gain and any(_POSITION_CLASS.search(type(module).__name__) for module in case.site.around[:2]):
        return Finding("elementwise", f"learned positions: added to the inputs, no map ({local} of {case.kind})")
    return None


def bias(case: Case) -> Finding | None:
    """Biases, those of stacked experts included."""
    if _BIAS.match(case.label):
        return Finding("bias", f"bias of {case.kind}")
    return None


def scale(case: Case) -> Finding | None:
    """Layer scales kept several to an array."""
    if _GAIN.match(case.label):
        return Finding("bias", f"scale of {case.kind}: multiplies entry by entry")
    return None


def vector(case: Case) -> Finding | None:
    """Every other vector or scalar: gains, layer scales, mixing weights."""
    return Finding("bias", f"vector of {case.kind}") if case.is_vector else None


_RULES: tuple[Callable[[Case], Finding | None], ...] = (
    adapter_table, gain_of_weight_norm, lookup_table, norm_gain, weight_of_layer, attention_projection,
    recurrent_weight, experts, mixed_convolution, router, bilinear, shared_space, raw_map, codebook, no_map, bias,
    scale, adapter_factor, vector,
)  # fmt: skip


def decide(case: Case) -> Finding | None:
    """Return what the first fitting rule says about a parameter, or None when no rule fits."""
    return next((finding for rule in _RULES if (finding := rule(case)) is not None), None)
