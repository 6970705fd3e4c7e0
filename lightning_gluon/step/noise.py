"""Rounding noise: sums whose terms cancel, and the biases that take no step along the rest.

A scale-free LMO makes a full step of any input. If the true gradient of a bias is zero (in front of batch
norm, at a key under softmax) it is given the rounding error of a sum. The bias is compared with its layer's own weight:

    grad b_j = sum_t d_tj          grad W_jk = sum_t d_tj x_tk          silent <=> rms(grad b) < floor rms(grad W)

Both sums run over the same signals `d`. The weight's says how large they are, and only if they cancel is the bias's
smaller by orders of magnitude. Error rates: `docs/primers/noise.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.norms.table import NORMS
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.ranks.layout import Layout
from lightning_gluon.step.consensus import Consensus
from lightning_gluon.step.plan import Chunk

__all__ = ["NOISE_FLOOR", "NoiseGuard"]

# By the dtype of the backward pass, between true zeros and real gradients as `benchmarks/noise.py` measures them.
NOISE_FLOOR = {torch.float64: 2**-38, torch.float32: 2**-9, torch.bfloat16: 2**-6, torch.float16: 2**-9}
JUDGED_ROLES = ("bias",)
# What stands for `bias` in the name of its weight: plain, and the direction in both styles of weight norm.
WEIGHT_NAMES = ("weight", "weight_v", "parametrizations.weight.original1")


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter of the plan: its place, and the settings of its group."""

    index: int
    name: str
    parameter: Tensor
    views: tuple[MatrixView, ...]
    group: Mapping[str, Any]
    layout: Layout | None = None

    def piece_of(self, line: Tensor, dim: int = 0) -> Tensor:
        """Return the part of a vector, one entry for each along a dimension, that belongs to this rank's piece."""
        if self.layout is None:
            return line
        region = self.layout.own
        return line.narrow(0, region.offset[dim], region.size[dim])

    @property
    def judged(self) -> bool:
        """True for a vector of biases whose LMO forgets the size of its gradient."""
        norm = NORMS[self.group["norm"]]
        role = self.group["role"]
        return norm.guarded and role in JUDGED_ROLES and self.parameter.ndim == 1

    @property
    def maps(self) -> int:
        """Number of maps that a matrix holds, as the partition reads it; 0 if it says nothing."""
        return sum(view.matrix[0] for view in self.views)

    @property
    def rows(self) -> int:
        """Rows of all these maps together."""
        return sum(view.matrix[0] * view.matrix[1] for view in self.views)


@dataclass(frozen=True, eq=False)
class Affine:
    """A layer of a weight and a bias."""

    bias: Member
    weight: Member

    @cached_property
    def fused(self) -> bool:
        """True if a matrix holds several maps, each with its own part of the bias."""
        if self.weight.parameter.ndim != 2 or self.weight.maps < 2:
            return False
        return self.weight.rows == self.bias.parameter.numel()

    @property
    def out_dim(self) -> int:
        """Dimension of a fused weight along which its maps lie."""
        view = self.weight.views[0]
        return 0 if view.permute[-1] == len(view.split) - 1 else 1

    @cached_property
    def labels(self) -> Tensor:
        """The part that every entry of the bias belongs to, and every row of the weight."""
        labels = torch.zeros(self.bias.parameter.numel(), dtype=torch.long)
        if self.fused:
            for number, part in enumerate(self.parts_of_bias(labels)):
                part.fill_(number)
        return labels

    @property
    def parts(self) -> int:
        """Number of parts that are judged apart."""
        return self.weight.maps if self.fused else 1

    @property
    def scale(self) -> float:
        """Root of the entries of the weight per entry of the bias: it turns 2-norms into root mean squares."""
        return math.sqrt(self.weight.parameter.numel() / self.bias.parameter.numel())

    @property
    def floor(self) -> float:
        """The floor of the bias's group, or of its dtype."""
        floor = self.bias.group["noise_floor"]
        if floor is not None:
            return floor
        return NOISE_FLOOR.get(self.bias.parameter.dtype, NOISE_FLOOR[torch.bfloat16])

    @cached_property
    def blocks(self) -> list[int]:
        """Rows of every part if parts are blocks of rows, one after the other; empty if they are not."""
        sizes: list[int] = []
        for view in self.weight.views:
            if not view.is_plain or view.dim != 0 or view.start != sum(sizes):
                return []
            sizes += [view.matrix[1]] * view.matrix[0]
        return sizes

    def parts_of_weight(self, tensor: Tensor) -> list[Tensor]:
        """Return the maps of a tensor laid out like the weight, sharing storage."""
        if self.blocks:
            return list(tensor.split(self.blocks))
        parts: list[Tensor] = []
        for view in self.weight.views:
            maps = view.of(tensor)
            if view.matrix[0] > 1:
                parts += maps.unbind()
            else:
                parts.append(maps)
        return parts

    def parts_of_bias(self, tensor: Tensor) -> list[Tensor]:
        """Return the parts of a tensor laid out like the bias, one for each map, sharing storage."""
        if self.blocks:
            return list(tensor.split(self.blocks))
        shape = self.weight.parameter.shape
        column = tensor if self.out_dim == 1 else tensor.unsqueeze(1)
        parts = self.parts_of_weight(column.expand(shape))
        return [part[..., 0] for part in parts]


@dataclass(frozen=True)
class Judgement:
    """Two norms that are compared, by their positions in the list of norms."""

    layer: Affine
    bias: int
    weight: int


class NoiseGuard:
    """Judge of the biases of a plan, each by one weight: found once per plan, so that a step only reads norms.

    Only biases are judged, and each by the weight of its own layer alone. Without a gradient of that weight a bias is
    not judged. Every map of a fused weight (`qkv`) judges its own part of the bias.

    A silent entry is left out of the direction that the LMO is given, so it takes no step. The step of the others keeps
    the length of the vector's radius. The estimator of a silent entry runs as ever, and weight decay acts on it.

    If both gradients are exactly zero (an expert without tokens) nothing is silent. The momentum then goes on, as in
    torch's optimizers.

    Args:
        chunks: The plan.
        consensus: The other ranks, if there are some: all of them judge alike.

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

    def __init__(self, chunks: list[Chunk], consensus: Consensus | None = None) -> None:
        self.consensus = consensus
        members = _number_members(chunks)
        self.count = len(members)
        self.device = members[0].parameter.device
        self.affine = _affine(members)
        self.judgements = _judgements(self.affine, behind=self.count)
        groups = {id(layer.bias.group): layer.bias.group for layer in self.affine}
        self.groups = list(groups.values())
        self.floors: list[float | None] = []
        self.lengths = [layer.bias.parameter.numel() for layer in self.affine]
        self.owner = _owners(self.affine).to(self.device)
        self.bias = self._on_device([judgement.bias for judgement in self.judgements])
        self.weight = self._on_device([judgement.weight for judgement in self.judgements])
        self.scale = self._on_device([judgement.layer.scale for judgement in self.judgements])

    @property
    def judged(self) -> list[int]:
        """Positions of the gradients whose norms `signal` reads."""
        if all(group["noise_floor"] == 0 for group in self.groups):
            return []
        pairs = [(layer.bias.index, layer.weight.index) for layer in self.affine]
        return sorted({index for pair in pairs for index in pair})

    def _on_device(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def signal(self, gradients: list[Tensor], norms: Tensor) -> list[Tensor | None] | None:
        """Return 1 for a gradient and 0 for rounding noise; nothing waits for the device.

        Args:
            gradients: Gradients in the order of the plan.
            norms: Their 2-norms.

        Returns:
            One tensor per judged bias, laid out like it, and `None` for every other parameter; `None` if nothing is
            judged.
        """
        floors = [group["noise_floor"] for group in self.groups]
        if all(floor == 0 for floor in floors):
            return None
        if floors != self.floors:
            self.least = self._on_device([judgement.layer.floor for judgement in self.judgements])
            self.floors = floors
        heard = self.shares(gradients, norms).less(self.least).logical_not()
        entries = heard[self.owner].to(norms.dtype)
        signal: list[Tensor | None] = [None] * self.count
        for layer, own in zip(self.affine, entries.split(self.lengths), strict=True):
            signal[layer.bias.index] = layer.bias.piece_of(own).to(layer.bias.parameter.device)
        return signal

    def shares(self, gradients: list[Tensor], norms: Tensor) -> Tensor:
        """Return the RMS of every judged gradient relative to that of its weight, in the order of `judgements`.

        If the weight's is zero or not finite (an fp16 norm overflows) the share is not finite: nothing is silent.

        Args:
            gradients: Gradients in the order of the plan.
            norms: Their 2-norms.
        """
        norms = self._with_parts(gradients, norms)
        terms = norms[self.weight]
        shares = norms[self.bias] * self.scale / terms
        return shares.where(terms.isfinite(), torch.nan)

    def _with_parts(self, gradients: list[Tensor], norms: Tensor) -> Tensor:
        """Append the norms of the parts of fused weights and of their biases."""
        if self.consensus is not None:
            return self._with_parts_of_all(self.consensus, gradients, norms)
        parts: list[Tensor] = []
        for layer in self.affine:
            if layer.fused:
                parts += layer.parts_of_bias(gradients[layer.bias.index])
                parts += layer.parts_of_weight(gradients[layer.weight.index])
        if not parts:
            return norms
        found = [norm.to(norms) for norm in torch._foreach_norm(parts)]
        return torch.cat([norms, torch.stack(found)])

    def _with_parts_of_all(self, consensus: Consensus, gradients: list[Tensor], norms: Tensor) -> Tensor:
        """Append the same norms of whole parts, from the pieces that every rank has of them."""
        squares: list[Tensor] = []
        params: list[Tensor] = []
        for layer in self.affine:
            if layer.fused:
                for member, dim in ((layer.bias, 0), (layer.weight, layer.out_dim)):
                    squares.append(
                        _part_squares(member.piece_of(layer.labels, dim), gradients[member.index], dim, layer.parts)
                    )
                    params += [member.parameter] * layer.parts
        if not squares:
            return norms
        sums = consensus.whole_sums(torch.cat(squares), consensus.where(params))
        return torch.cat([norms, sums.sqrt().to(norms)])


def _part_squares(labels: Tensor, piece: Tensor, dim: int, parts: int) -> Tensor:
    """Return the sum of squares of every part of a piece, given the part of every entry along a dimension."""
    others = [other for other in range(piece.ndim) if other != dim]
    rows = torch.linalg.vector_norm(piece, dim=others) if others else piece.abs()
    sums = torch.zeros(parts, dtype=torch.float64, device=piece.device)
    return sums.index_add_(0, labels.to(piece.device), rows.double().square())


def _number_members(chunks: list[Chunk]) -> list[Member]:
    """Number the parameters of a plan."""
    members: list[Member] = []
    for chunk in chunks:
        group = chunk.group
        layouts: Sequence[Layout | None] = chunk.layouts or [None] * len(chunk.indices)
        for position, name, parameter, layout in zip(chunk.indices, chunk.names, chunk.params, layouts, strict=True):
            said = group["views"][position] or ()
            views = tuple(MatrixView(*view) for view in said)
            members.append(Member(len(members), name, parameter, views, group, layout))
    return members


def _affine(members: list[Member]) -> list[Affine]:
    """Find the weight of every judged bias by its name: `X.weight` of `X.bias`, `in_proj_weight` of `in_proj_bias`."""
    named = {member.name: member for member in members}
    layers: list[Affine] = []
    for bias in members:
        path, dot, last = bias.name.rpartition(".")
        if not bias.judged or "bias" not in last:
            continue
        for other in WEIGHT_NAMES:
            weight = named.get(path + dot + last.replace("bias", other))
            if weight is not None and weight.parameter.numel() % bias.parameter.numel() == 0:
                layers.append(Affine(bias, weight))
                break
    return layers


def _judgements(layers: list[Affine], *, behind: int) -> list[Judgement]:
    """Say which norms are compared: those of parts stand behind those of the plan, biases first."""
    judgements: list[Judgement] = []
    for layer in layers:
        if not layer.fused:
            judgements.append(Judgement(layer, layer.bias.index, layer.weight.index))
            continue
        for bias in range(behind, behind + layer.parts):
            judgements.append(Judgement(layer, bias, bias + layer.parts))
        behind += 2 * layer.parts
    return judgements


def _owners(layers: list[Affine]) -> Tensor:
    """Return the judgement that every entry of every bias belongs to."""
    owners = [torch.zeros(0, dtype=torch.long)]
    first = 0
    for layer in layers:
        owners.append(layer.labels + first)
        first += layer.parts
    return torch.cat(owners)
