"""Maps that their modules keep as bare arrays: known by the class that owns them, with the layout its forward uses."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.fused import Split
from lightning_gluon.partition.layouts import Read, split_views
from lightning_gluon.partition.network import Site, class_names, look_up

__all__ = ["RawMap", "find_raw_map"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class RawMap:
    """A family of bare arrays that are maps.

    Args:
        owner: Pattern of the owner's class name, or of a base class.
        local: Pattern of the parameter's name.
        layout: `out_in` (`y = W x`, every dimension but the last is out), `out_first` (every dimension but the first is
            in), `in_first` (`y = x W`, every dimension but the first is out), `batch` (a stack of `out_in`) or
            `batch_in_out` (a stack of matrices stored transposed).
        role: Its role.
    """

    owner: str
    local: str
    layout: str
    role: str = "hidden"


_RAW_MAPS = (
    RawMap("XLNetRelativeAttention", "[qkvr]", "in_first"),
    RawMap("XLNetRelativeAttention", "o", "out_first"),
    RawMap("FunnelRelMultiheadAttention", "r_kernel", "in_first"),
    RawMap("ZambaMambaMixer", "(x|dt)_proj_weight", "batch"),
    RawMap("RecurrentGemmaRglru", "(input|recurrent)_gate_weight", "batch_in_out"),
    RawMap(".*HyperConnection|.*HyperHead", "(hc_)?fn", "out_in"),
    RawMap(".*Indexer", "index_kpool_compress_gate", "out_in"),
    RawMap(".*CodebooksHead", "weight", "batch_in_out", "head"),
    RawMap("EsmFold2ConfidenceHead", "(plddt|resolved)_weight", "batch_in_out", "head"),
    RawMap("EsmFold2Parcae", "input_matrix_continuous", "out_in"),
    RawMap("AMSoftmaxLoss", "weight", "in_first", "head"),
    RawMap(".*MultiModalProjector", "mm_input_projection_weight", "in_first"),
    RawMap("XCLIPModel", "prompts_visual_projection", "in_first"),
    RawMap("OmDetTurboLanguageBackbone", "text_projection", "in_first"),
    RawMap("MultiQueryAttention.*", "query_proj", "out_in"),
    RawMap("MultiQueryAttention.*", "(key|value)_proj", "in_first"),
    RawMap("MultiQueryAttention.*", "out_proj", "out_first"),
)


def _in_first(shape: Shape) -> MatrixView:
    last = tuple(range(1, len(shape)))
    return MatrixView(0, 0, shape[0], shape, (*last, 0), (1, math.prod(shape[1:]), shape[0]))


def _read(layout: str, shape: Shape) -> tuple[MatrixView, ...]:
    if layout == "in_first":
        return (_in_first(shape),)
    if layout in {"batch", "batch_in_out"}:
        return (MatrixView.whole(shape, transposed=layout == "batch_in_out"),)
    out = math.prod(shape[:-1]) if layout == "out_in" else shape[0]
    return (MatrixView(0, 0, shape[0], shape, tuple(range(len(shape))), (1, out, math.prod(shape) // out)),)


def find_raw_map(site: Site, shape: Shape) -> tuple[RawMap, Read] | None:
    """Return the family that a bare array belongs to, with its matrices, or None.

    Args:
        site: Place of the parameter.
        shape: Its shape.

    Returns:
        The family and how the array is read, or None when it belongs to no known family.
    """
    for entry in _RAW_MAPS:
        if not re.fullmatch(entry.local, site.local) or len(shape) < 2:
            continue
        if any(re.fullmatch(entry.owner, name) for name in class_names(site.owner)):
            note = ", stored transposed" if entry.layout in {"in_first", "batch_in_out"} else ""
            if site.local == "x_proj_weight":
                state = look_up(site.around, "ssm_state_size")
                rows = shape[-2]
                return entry, split_views(shape, Split(("dt", "B", "C"), (rows - 2 * state, state, state)))
            return entry, (_read(entry.layout, shape), note)
    return None
