"""Readings of one layer between two iterates, in the layer's own norm; sums and maxima make them a role's.

With `T = X^{k-1} - X^k` the last step (decay included), `t = ||T||` its length and `D = T / t` its direction,

    reading             meaning                                                         unit
    grad_dual_norm      ||g^k||_*                                                       loss / norm
    weight_norm         ||X^k||                                                         norm
    update_norm         t, the effective radius                                         norm
    update_rms          root mean square of the entries of T                            weight
    L_trajectory        ||g^k - g^{k-1}||_* / t, two minibatches (the Gluon paper's)    loss / norm^2
    L_hat               ||c_new - c_old||_* / t, the same minibatch                     loss / norm^2
    noise_only         sqrt(2) ||g^k||_* / t: L_trajectory when it is only noise       loss / norm^2
    noise_ratio         ||g^k - g^{k-1}||_* / ||g^k||_*; near sqrt(2): only noise       1
    same_to_different   ||c_new - c_old||_* / ||g^k - g^{k-1}||_*; over .8: t is far too large    1
    agreement           <g^k, D>: slope of a fresh sample along the last step           loss / norm
    alignment           <c_old, D>: the same before the step                            loss / norm
    curvature           <c_old - c_new, D> / t: secant along the last step              loss / norm^2
    L0, L1              the running fit L_hat ~ L0 + L1 ||g||_*                         loss / norm^2, 1 / norm
    goodness            share of the variance of L_hat that the fit explains            1

A role is the product of its layers: its norm is the largest layer norm, its dual norm the sum of theirs.

If steps use transported gradients (`gluon-igt`), the readings of two minibatches are those at the transported points:
`L_trajectory`, `noise_only` and `noise_ratio`. All others are at `X^k` if a probe was taken, as the fit needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gluon.smoothness.fit import noise_only
from lightning_gluon.step.layers import Layer

__all__ = ["FIT_KEYS", "READINGS", "Pair", "combine", "derive", "gather_wide", "inner", "measure"]

READINGS = (
    "grad_dual_norm",
    "weight_norm",
    "update_norm",
    "update_rms",
    "L_trajectory",
    "L_hat",
    "noise_only",
    "noise_ratio",
    "same_to_different",
    "agreement",
    "alignment",
    "curvature",
)
FIT_KEYS = ("L0", "L1", "goodness")
COMBINED_BY_MAXIMUM = ("weight", "step")  # of the raw sums these combine by their maximum, all others add
Raw = dict[str, float]


@dataclass
class Pair:
    """One layer at two iterates.

    Args:
        layer: The layer, at the present iterate.
        grad: Gradient of this step's sample.
        weight_before: Weights at the last iterate.
        grad_before: Gradient of the last step's sample, or `None`.
        new: Gradient of this sample here, where it is not `grad` itself.
        old: Gradient of this sample at the last iterate (`c_old`), or `None`.
    """

    layer: Layer
    grad: Tensor
    weight_before: Tensor
    grad_before: Tensor | None = None
    new: Tensor | None = None
    old: Tensor | None = None


@torch.no_grad()
def measure(pairs: Iterable[Pair], *, exact: bool | None = None) -> list[Raw]:
    """Return the raw norms and products of every layer, waiting for the device once.

    Args:
        pairs: Layers at two iterates.
        exact: Whether spectral and nuclear norms come from singular values; default: on the CPU. Decompositions are
            slow on accelerators; there power iteration and the orthogonaliser stand in (within a few per cent).

    Returns:
        One dict of floats per layer, for `derive` and `combine`; what could not be measured is left out.
    """
    tensors = [_raw(pair, exact) for pair in pairs]
    flat: list[Tensor] = []
    for raw in tensors:
        flat.extend(raw.values())
    if not flat:
        return []
    device = flat[0].device
    together = [value.float().to(device) for value in flat]
    values = iter(torch.stack(together).tolist())
    return [dict(zip(raw, values, strict=False)) for raw in tensors]


def _raw(pair: Pair, exact: bool | None) -> dict[str, Tensor]:
    layer = pair.layer
    grad = gather_wide(pair.grad)
    weight = gather_wide(layer.parameter)
    if exact is None:
        exact = weight.device.type == "cpu"
    step = gather_wide(pair.weight_before) - weight
    new = grad
    if pair.new is not None:
        new = gather_wide(pair.new)
    raw = {
        "grad": layer.dual_norm(new, exact=exact),
        "weight": layer.norm(weight, exact=exact),
        "step": layer.norm(step, exact=exact),
        "square": step.square().sum(),
        "count": torch.full((), step.numel(), device=step.device),
        "grad_step": inner(new, step),
    }
    if pair.new is not None:
        raw["sample"] = layer.dual_norm(grad, exact=exact)
    if pair.grad_before is not None:
        different = grad - gather_wide(pair.grad_before)
        raw["different"] = layer.dual_norm(different, exact=exact)
    if pair.old is not None:
        old = gather_wide(pair.old)
        raw["same"] = layer.dual_norm(new - old, exact=exact)
        raw["old_step"] = inner(old, step)
    return raw


def gather_wide(tensor: Tensor) -> Tensor:
    """Return a tensor in fp32 or wider, gathered from its shards if there are any (a collective, on every rank)."""
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def inner(one: Tensor, other: Tensor) -> Tensor:
    """Return `<one, other>` as a 0-dim tensor."""
    return torch.dot(one.flatten(), other.flatten().to(one.dtype))


def combine(raws: Iterable[Raw]) -> Raw:
    """Return the raw values of several layers as of one: norms by their maximum, dual norms and products by their sum.

    Args:
        raws: Result of `measure` for them.

    Returns:
        The same keys, as far as all layers have them.

    Example:
        >>> combine([{"grad": 1.0, "step": 0.1}, {"grad": 2.0, "step": 0.2}])
        {'grad': 3.0, 'step': 0.2}
    """
    raws = list(raws)
    together = {}
    for key in raws[0]:
        values = [raw[key] for raw in raws if key in raw]
        if len(values) == len(raws):
            together[key] = max(values) if key in COMBINED_BY_MAXIMUM else math.fsum(values)
    return together


def derive(raw: Mapping[str, float]) -> dict[str, float]:
    """Return the readings, in the units of the table above; `nan` for what could not be measured.

    Args:
        raw: What `measure` or `combine` returned.

    Returns:
        One value per entry of `READINGS`.
    """
    step = raw["step"]
    grad = raw["grad"]
    new_slope = raw["grad_step"]
    old_slope = raw.get("old_step", math.nan)
    same = raw.get("same", math.nan)
    different = raw.get("different", math.nan)
    sample = raw.get("sample", grad)
    mean_square = raw["square"] / raw["count"]
    return {
        "grad_dual_norm": grad,
        "weight_norm": raw["weight"],
        "update_norm": step,
        "update_rms": math.sqrt(mean_square),
        "L_trajectory": _over(different, step),
        "L_hat": _over(same, step),
        "noise_only": noise_only(sample, step),
        "noise_ratio": _over(different, sample),
        "same_to_different": _over(same, different),
        "agreement": _over(new_slope, step),
        "alignment": _over(old_slope, step),
        "curvature": _over(old_slope - new_slope, step**2),
    }


def _over(value: float, unit: float) -> float:
    if unit > 0:
        return value / unit
    return math.nan
