"""Momenta carried as the factors of a low rank, stack by stack: equal matrices of all parameters are one batch.

    M ~ U S V^T + E        E: what the truncation dropped, in 8 or 4 bits (`feedback`); without it E is forgotten

With the feedback the next step starts at the whole M again, but for the rounding of E: the truncation itself is then
free of error, whatever the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.low_rank import Triple, compress_stacks, expand, sketch_generator
from lightning_gluon.estimators.quantize import QUANTIZERS, Quantizer
from lightning_gluon.norms.views import MatrixView

__all__ = ["FactorStack", "factors_layout", "store_stacks"]

Entries = dict[str, Any]  # of the state of one parameter
FirstMomentum = Callable[[Tensor], Tensor]  # a momentum before the first step, given the gradient


def factors_layout(parameter: Tensor, factored: tuple[MatrixView, ...], group: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what is kept of one parameter's momentum, by key.

    Args:
        parameter: The parameter.
        factored: The matrices that its momentum is compressed as.
        group: Its group: `rank`, `factor_dtype` and `feedback`.

    Returns:
        Tensors on the meta device: shapes and dtypes.
    """
    entries = {}
    dtype, wide = factor_dtype(parameter, group), torch.promote_types(parameter.dtype, torch.float32)
    quantizer = _feedback(group)
    for index, view in enumerate(factored):
        batch, rows, columns = view.matrix
        rank = min(group["rank"], rows, columns)
        entries[f"U{index}"] = torch.empty((batch, rows, rank), dtype=dtype, device="meta")
        entries[f"S{index}"] = torch.empty((batch, rank), dtype=wide, device="meta")
        entries[f"V{index}"] = torch.empty((batch, columns, rank), dtype=dtype, device="meta")
        if quantizer is not None:
            entries[f"E{index}"], entries[f"E_scale{index}"] = quantizer.layout(view.matrix)
    return entries


def factor_dtype(parameter: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype in which `U` and `V` are kept: fp32 or wider, if the group asks for no other."""
    asked = group.get("factor_dtype")
    return getattr(torch, asked) if asked else torch.promote_types(parameter.dtype, torch.float32)


def _feedback(group: Mapping[str, Any]) -> Quantizer | None:
    """Return what quantises the part that truncation drops; `None` if it is forgotten."""
    bits = group.get("feedback")
    return QUANTIZERS[bits] if bits else None


@dataclass(frozen=True)
class Piece:
    """One view of one parameter in a stack.

    Args:
        member: The parameter, by its place in a list.
        index: The view, by its place among those of the parameter.
        view: The view.
        part: Its matrices in the stack.
        whole: Whether they are the parameter itself, so that it can share their memory.
    """

    member: int
    index: int
    view: MatrixView
    part: slice
    whole: bool


@dataclass
class FactorStack:
    """Equal matrices whose momenta are expanded and compressed as one batch.

    Args:
        states: The optimizer's state of every parameter of the list.
        matrix: Shape `(batch, m, n)` of every piece.
        pieces: The views that lie in the stack.
    """

    states: Sequence[Entries]
    matrix: tuple[int, int, int]
    pieces: list[Piece] = field(default_factory=list)

    @classmethod
    def build(cls, states: Sequence[Entries], factored: Sequence[tuple[MatrixView, ...]]) -> list[FactorStack]:
        """Return the stacks of a list of parameters.

        Args:
            states: The optimizer's state of every parameter.
            factored: The matrices that each is compressed as; empty for the dense carry.
        """
        stacks: dict[tuple[int, int, int], FactorStack] = {}
        for member, views in enumerate(factored):
            for index, view in enumerate(views):
                stack = stacks.setdefault(view.matrix, cls(states, view.matrix))
                batch = view.matrix[0]
                start = len(stack.pieces) * batch
                piece = Piece(
                    member=member,
                    index=index,
                    view=view,
                    part=slice(start, start + batch),
                    whole=len(views) == 1 and view.is_plain,
                )
                stack.pieces.append(piece)
        return list(stacks.values())

    def load_(
        self,
        buffers: list[Tensor],
        gradients: Sequence[Tensor],
        first: FirstMomentum,
        group: Mapping[str, Any],
    ) -> None:
        """Put momenta in place of gradients; those that are whole matrices share the memory of the stack.

        Args:
            buffers: The gradients, to be replaced.
            gradients: The gradients.
            first: The momentum before the first step, given the gradient.
            group: Their group.
        """
        like = buffers[self.pieces[0].member]
        batch, rows, columns = self.matrix
        self.momenta = like.new_empty((len(self.pieces) * batch, rows, columns))
        self.shared: dict[int, Tensor] = {}
        known = [self._has(piece, "U") for piece in self.pieces]
        if all(known):
            self._expand(self.pieces, self.momenta, group)
        for piece, has in zip(self.pieces, known, strict=True):
            own, gradient = self.momenta[piece.part], gradients[piece.member]
            if not has:
                own.copy_(piece.view.gather(first(gradient)))
            elif not all(known):
                self._expand([piece], own, group)
            if piece.whole:
                self.shared[piece.member] = buffers[piece.member] = own.view(gradient.shape)
                continue
            if buffers[piece.member] is gradient:
                buffers[piece.member] = torch.empty_like(gradient)
            piece.view.scatter_(buffers[piece.member], own)

    def gather_(self, buffers: Sequence[Tensor]) -> Tensor:
        """Return the momenta after the step; those of whole matrices lie in the stack already.

        Args:
            buffers: What `load_` put there.
        """
        for piece in self.pieces:
            value = buffers[piece.member]
            if self.shared.get(piece.member) is not value:
                self.momenta[piece.part].copy_(piece.view.gather(value))
        return self.momenta

    def keep(self, factors: Triple, group: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Keep the factors of the momenta, and what they leave out.

        Args:
            factors: U, S and V.
            group: The group of the parameters.
            dtype: Dtype of U and V.
        """
        left, values, right = factors
        left = left.to(dtype)
        right = right.to(dtype)
        self._keep("U", left)
        self._keep("S", values)
        self._keep("V", right)
        quantizer = _feedback(group)
        if quantizer is not None:
            kept = expand(left.to(values.dtype), values, right.to(values.dtype))
            codes, scales = quantizer.quantize(self.momenta - kept)
            self._keep("E", codes)
            self._keep("E_scale", scales)

    def _expand(self, pieces: list[Piece], out: Tensor, group: Mapping[str, Any]) -> None:
        """Write the momenta of some pieces, with what was dropped from them."""
        left, values, right = [self._joined(key, pieces).to(out.dtype) for key in "USV"]
        expand(left, values, right, out=out)
        quantizer = _feedback(group)
        if quantizer is not None:
            out += quantizer.restore(self._joined("E", pieces), self._joined("E_scale", pieces), out)

    def _has(self, piece: Piece, key: str) -> bool:
        return f"{key}{piece.index}" in self.states[piece.member]

    def _joined(self, key: str, pieces: list[Piece]) -> Tensor:
        return torch.cat([self.states[piece.member][f"{key}{piece.index}"] for piece in pieces])

    def _keep(self, key: str, stack: Tensor) -> None:
        """Keep an entry of every piece, in the memory that it has."""
        places, parts = [], []
        for piece in self.pieces:
            state = self.states[piece.member]
            name = f"{key}{piece.index}"
            part = stack[piece.part]
            if name in state and state[name].shape == part.shape:
                places.append(state[name])
                parts.append(part)
            else:
                state[name] = part.clone()
        if places:
            torch._foreach_copy_(places, parts)


def store_stacks(
    stacks: Sequence[FactorStack], buffers: Sequence[Tensor], group: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Compress the momenta of stacks, and keep their factors.

    Args:
        stacks: The stacks.
        buffers: The momenta after the step, by parameter.
        group: Their group: `rank` and the rest of the sketch, `feedback`.
        dtype: Dtype of U and V.
    """
    momenta = []
    generators = []
    for stack in stacks:
        momenta.append(stack.gather_(buffers))
        generator = sketch_generator(group["seed"], group["steps"], stack.matrix, buffers[0].device)
        generators.append(generator)
    found = compress_stacks(
        momenta,
        generators,
        rank=group["rank"],
        oversampling=group["oversampling"],
        power_iterations=group["power_iterations"],
    )
    for stack, factors in zip(stacks, found, strict=True):
        stack.keep(factors, group, dtype)
