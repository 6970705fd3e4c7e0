"""Rounding noise: sums whose terms cancel, and the biases that take no step along what is left.

A scale-free LMO makes a full step of whatever it is given. Where the true gradient of a bias is zero (in front of batch
norm, at a key under softmax) it is given the rounding error of a sum. The bias is compared with its layer's own weight:

    grad b_j = sum_t d_tj          grad W_jk = sum_t d_tj x_tk          silent <=> rms(grad b) < floor rms(grad W)

Both sums run over the same signals `d`. The weight's says how large they are, and only where they cancel is the bias's
smaller by orders of magnitude. Error rates: `docs/primers/noise.md`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.norms.table import NORMS
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.step.plan import Chunk

__all__ = ["NOISE_FLOOR", "NoiseGuard"]

# By the dtype of the backward pass, between true zeros and real gradients as `benchmarks/noise.py` measures them.
NOISE_FLOOR = {torch.float64: 2**-38, torch.float32: 2**-14, torch.bfloat16: 2**-6, torch.float16: 2**-10}
JUDGED_ROLES = ("bias",)
# What stands for `bias` in the name of its weight: plain, and the direction in both styles of weight norm.
WEIGHTS = ("weight", "weight_v", "parametrizations.weight.original1")


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter of the plan: where it stands, and what its group says of it."""

    index: int
    name: str
    parameter: Tensor
    views: tuple[MatrixView, ...]
    group: Mapping[str, Any]

    @property
    def judged(self) -> bool:
        """True for a vector of biases whose LMO forgets the size of its gradient."""
        guarded = NORMS[self.group["norm"]].guarded
        return guarded and self.group["role"] in JUDGED_ROLES and self.parameter.ndim == 1


@dataclass(frozen=True, eq=False)
class Pair:
    """A bias and the weight of the same layer."""

    bias: Member
    weight: Member

    @property
    def fused(self) -> bool:
        """True where a matrix holds several maps, each with its own part of the bias."""
        views = self.weight.views
        rows = sum(view.matrix[0] * view.matrix[1] for view in views)
        several = sum(view.matrix[0] for view in views) > 1
        return several and self.weight.parameter.ndim == 2 and rows == self.bias.parameter.numel()

    @property
    def scale(self) -> float:
        """Root of the entries of the weight per entry of the bias: what turns 2-norms into root mean squares."""
        return math.sqrt(self.weight.parameter.numel() / self.bias.parameter.numel())

    @property
    def floor(self) -> float:
        """The floor of the bias's group, or of its dtype."""
        floor = self.bias.group["noise_floor"]
        return NOISE_FLOOR.get(self.bias.parameter.dtype, 2**-7) if floor is None else floor

    def parts_of_weight(self, tensor: Tensor) -> list[Tensor]:
        """Return the maps of a tensor laid out like the weight, sharing storage."""
        parts: list[Tensor] = []
        for view in self.weight.views:
            maps = view.of(tensor)
            parts += maps.unbind() if view.matrix[0] > 1 else [maps]
        return parts

    def parts_of_bias(self, tensor: Tensor) -> list[Tensor]:
        """Return the parts of a tensor laid out like the bias, one for each map, sharing storage."""
        shape, view = self.weight.parameter.shape, self.weight.views[0]
        transposed = view.permute[-1] != len(view.split) - 1  # stored (in, out)
        wide = tensor.expand(shape) if transposed else tensor.unsqueeze(1).expand(shape)
        return [part[..., 0] for part in self.parts_of_weight(wide)]


@dataclass(frozen=True)
class Comparison:
    """Two norms that are compared, by their positions in the list of norms."""

    pair: Pair
    bias: int
    weight: int


class NoiseGuard:
    """Which biases of a plan are judged, and by which weight: found once per plan, so that a step only reads norms.

    Only biases are judged, each by the weight of its own layer alone, and not where that has no gradient. Every map of a
    fused weight (`qkv`) judges its own part of the bias. Where both gradients are exactly zero (an expert without
    tokens) nothing is silent.

    Args:
        chunks: The plan.

    Example:
        >>> from lightning_gluon import Gluon
        >>> from lightning_gluon.step.plan import build_plan
        >>> layer = torch.nn.Linear(2, 2)
        >>> layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.tensor([1e-7, -1e-7])
        >>> chunks = build_plan(Gluon(layer, lr=0.1).param_groups)
        >>> gradients = [gradient for chunk in chunks for gradient in chunk.gradients]
        >>> NoiseGuard(chunks).signal(gradients, torch.stack([gradient.norm() for gradient in gradients]))
        [None, tensor([0., 0.])]
    """

    def __init__(self, chunks: list[Chunk]) -> None:
        members = list(_members(chunks))
        self.count = len(members)
        self.device = members[0].parameter.device
        pairs = list(_pairs(members))
        self.fused = [pair for pair in pairs if pair.fused]
        self.comparisons = [*_whole(pairs), *_parts(self.fused, behind=self.count)]
        self.pairs = list(dict.fromkeys(comparison.pair for comparison in self.comparisons))
        self.groups = list({id(pair.bias.group): pair.bias.group for pair in self.pairs}.values())
        self.floors: list[float | None] = []
        if not self.pairs:
            return
        self.lengths = [pair.bias.parameter.numel() for pair in self.pairs]
        self.entries = torch.cat([self._owners(pair) for pair in self.pairs]).to(self.device)
        self.bias = torch.tensor([comparison.bias for comparison in self.comparisons], device=self.device)
        self.weight = torch.tensor([comparison.weight for comparison in self.comparisons], device=self.device)
        self.scale = torch.tensor([comparison.pair.scale for comparison in self.comparisons], device=self.device)

    def _owners(self, pair: Pair) -> Tensor:
        """Return which comparison every entry of a bias belongs to."""
        own = [position for position, comparison in enumerate(self.comparisons) if comparison.pair is pair]
        owners = torch.full(pair.bias.parameter.shape, own[0])
        if pair.fused:
            for part, position in zip(pair.parts_of_bias(owners), own, strict=True):
                part.fill_(position)
        return owners

    def signal(self, gradients: list[Tensor], norms: Tensor) -> list[Tensor | None] | None:
        """Return 1 for a gradient and 0 for rounding noise; nothing waits for the device.

        Args:
            gradients: Gradients in the order of the plan.
            norms: Their 2-norms.

        Returns:
            One tensor per judged bias, laid out like it, and `None` for every other parameter; `None` where nothing is
            judged.
        """
        floors = [group["noise_floor"] for group in self.groups]
        if all(floor == 0 for floor in floors):
            return None
        if floors != self.floors:
            least = [comparison.pair.floor for comparison in self.comparisons]
            self.floors, self.least = floors, torch.tensor(least, device=self.device)
        silent = self.shares(gradients, norms) < self.least
        heard = silent.logical_not()[self.entries].to(norms.dtype)
        signal: list[Tensor | None] = [None] * self.count
        for pair, entries in zip(self.pairs, heard.split(self.lengths), strict=True):
            signal[pair.bias.index] = entries.to(pair.bias.parameter.device)
        return signal

    def shares(self, gradients: list[Tensor], norms: Tensor) -> Tensor:
        """Return the RMS of every judged gradient relative to that of its weight, in the order of `comparisons`.

        Where the weight's is zero or not finite (an fp16 norm overflows) the share is not finite, and nothing is silent.

        Args:
            gradients: Gradients in the order of the plan.
            norms: Their 2-norms.
        """
        norms = self._with_parts(gradients, norms)
        terms = norms[self.weight]
        return torch.where(terms.isfinite(), norms[self.bias] * self.scale / terms, torch.nan)

    def _with_parts(self, gradients: list[Tensor], norms: Tensor) -> Tensor:
        """Append the norms of the parts of fused weights and of their biases."""
        parts: list[Tensor] = []
        for pair in self.fused:
            parts += pair.parts_of_bias(gradients[pair.bias.index])
            parts += pair.parts_of_weight(gradients[pair.weight.index])
        if not parts:
            return norms
        return torch.cat([norms, torch.stack([norm.to(norms) for norm in torch._foreach_norm(parts)])])


def _members(chunks: list[Chunk]) -> Iterator[Member]:
    """Number the parameters of a plan."""
    index = 0
    for chunk in chunks:
        for position, name, parameter in zip(chunk.indices, chunk.names, chunk.params, strict=True):
            views = tuple(MatrixView(*view) for view in chunk.group["views"][position] or ())
            yield Member(index, name, parameter, views, chunk.group)
            index += 1


def _pairs(members: list[Member]) -> Iterator[Pair]:
    """Find the weight of every judged bias by its name: `X.weight` of `X.bias`, `in_proj_weight` of `in_proj_bias`."""
    counts = Counter(member.name for member in members)  # of two networks: a name that two share says nothing
    named = {member.name: member for member in members if counts[member.name] == 1}
    for bias in members:
        path, dot, last = bias.name.rpartition(".")
        if not bias.judged or "bias" not in last:
            continue
        names = [path + dot + last.replace("bias", weight) for weight in WEIGHTS]
        weight = next((named[name] for name in names if name in named), None)
        if weight is not None and weight.parameter.numel() % bias.parameter.numel() == 0:
            yield Pair(bias, weight)


def _whole(pairs: list[Pair]) -> Iterator[Comparison]:
    """Compare whole biases, whose norms are those of the plan."""
    for pair in pairs:
        if not pair.fused:
            yield Comparison(pair, pair.bias.index, pair.weight.index)


def _parts(pairs: list[Pair], *, behind: int) -> Iterator[Comparison]:
    """Compare the parts of fused biases, whose norms stand behind those of the plan."""
    for pair in pairs:
        count = len(pair.parts_of_weight(pair.weight.parameter.detach()))
        for part in range(count):
            yield Comparison(pair, behind + part, behind + count + part)
        behind += 2 * count
