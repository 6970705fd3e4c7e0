"""How a stored weight is read as matrices `(out, in)`: one view per map that it holds."""

from __future__ import annotations

import math

from torch import nn

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.fused import Split, find_split
from lightning_gluon.partition.network import Site, class_names

__all__ = ["expert_views", "is_depthwise", "layer_views", "recurrent_views", "split_views"]

_Conv = nn.modules.conv._ConvNd
_ConvTranspose = nn.modules.conv._ConvTransposeNd
Shape = tuple[int, ...]
Read = tuple[tuple[MatrixView, ...], str]  # the views and what to say about them


def _noted(split: Split) -> str:
    """Say what a split holds."""
    return f", {' + '.join(split.parts)} fused" + (f" in {split.groups} groups" if split.groups > 1 else "")


def split_views(shape: Shape, split: Split, *, transposed: bool = False, kernel_dims: int = 0) -> Read:
    """Read a fused weight part by part."""
    views = MatrixView.grouped(
        shape, sizes=split.sizes, groups=split.groups, transposed=transposed, kernel_dims=kernel_dims
    )
    return views, _noted(split)


def is_depthwise(conv: nn.Module) -> bool:
    """Tell whether a convolution filters each channel by itself, which is no map between channels."""
    if not isinstance(conv, _Conv):
        return False
    return (conv.groups > 1 and conv.groups == conv.in_channels) or conv.in_channels == conv.out_channels == 1


def layer_views(site: Site, shape: Shape) -> Read:
    """Read the weight of a linear layer, a convolution or a `Conv1D` of GPT-2."""
    owner = site.owner
    transposed = "Conv1D" in class_names(owner)
    stacked = not isinstance(owner, _Conv) and len(shape) > 2
    rows, columns = shape[::-1] if transposed else shape[-2:] if stacked else shape[:2]
    lora_in = any(part.startswith(("lora_A", "lora_embedding")) for part in site.path.split("."))
    if isinstance(owner, _ConvTranspose):
        return (MatrixView.conv(shape, transposed=True, groups=owner.groups),), ""
    if isinstance(owner, _Conv) and owner.groups > 1:
        return (MatrixView.conv(shape, groups=owner.groups),), f", {owner.groups} groups"
    split = None if lora_in else find_split(site, rows, columns)
    if isinstance(owner, _Conv):
        if split is None:
            return (MatrixView.conv(shape),), ""
        return split_views(shape, split, kernel_dims=len(shape) - 2)
    if split is not None:
        return split_views(shape, split, transposed=transposed)
    return (MatrixView.whole(shape, transposed=transposed),), ", stored transposed" if transposed else ""


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}


def recurrent_views(site: Site, shape: Shape) -> Read:
    """Read a recurrent weight gate by gate; LSTM's projection `weight_hr` is one map."""
    gates = next((_GATES[name] for name in class_names(site.owner) if name in _GATES), 1)
    if gates == 1 or site.local.startswith("weight_hr"):
        return (MatrixView.whole(shape),), ""
    return MatrixView.blocks(shape, sizes=(shape[0] // gates,) * gates), f", {gates} gates fused"


def _is_transposed(owner: nn.Module, local: str, shape: Shape) -> bool:
    """Tell whether stacked experts are stored `(experts, in, out)`."""
    declared = getattr(owner, "is_transposed", None)
    if declared is not None:
        return bool(declared)
    first, second = getattr(owner, "gate_up_proj", None), getattr(owner, "down_proj", None)
    if first is None or second is None:
        return False
    # (E, hidden, 2 * inner) with (E, inner, hidden), against (E, 2 * inner, hidden) with (E, hidden, inner)
    return bool(first.shape[-1] == 2 * second.shape[-2] and first.shape[-2] == second.shape[-1])


def expert_views(site: Site, shape: Shape) -> Read:
    """Read stacked experts, as transformers keeps them in one parameter each, as a batch of maps."""
    owner, local = site.owner, site.local
    if len(shape) == 2:  # DBRX: (experts * inner, hidden); the second map is applied transposed
        count = next(c for n in ("moe_num_experts", "num_experts") if (c := getattr(owner, n, None)))
        tall = MatrixView.whole((count, shape[0] // count, shape[1]), transposed=local == "w2")
        view = MatrixView(0, 0, shape[0], tall.split, tall.permute, tall.matrix)
        return (view,), f", {count} experts stacked"
    transposed = _is_transposed(owner, local, shape)
    note = f", {math.prod(shape[:-2])} experts stacked" + (", stored transposed" if transposed else "")
    if local == "gate_up_proj" or (local == "weight" and site.holders and site.holders[0][0] == "input_linear"):
        rows = shape[-1] if transposed else shape[-2]
        alternate = not getattr(owner, "is_concatenated", True)
        size, groups = (1, rows // 2) if alternate else (rows // 2, 1)
        views, fused = split_views(shape, Split(("gate", "up"), (size, size), groups), transposed=transposed)
        return views, note + fused
    return (MatrixView.whole(shape, transposed=transposed),), note
