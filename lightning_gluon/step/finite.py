"""Gradients before anything moves: they are dense, finite, and fit in the dtype of their momentum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gluon.estimators.carry import dense_dtype
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.options import Group
from lightning_gluon.step.consensus import Consensus
from lightning_gluon.step.plan import Chunk

RAISE, IGNORE, SKIP = "raise", "ignore", "skip"  # of `on_nonfinite`
HIGHEST = torch.finfo(torch.float32).max  # of a norm, which is computed in fp32


@dataclass(frozen=True)
class Watched:
    """A parameter whose gradient is watched.

    Args:
        name: Its name.
        shape: Its shape.
        group: Its group, which says what happens.
        largest: The largest entry that its momentum can hold.
    """

    name: str
    shape: tuple[int, ...]
    group: Group
    largest: float

    def __str__(self) -> str:
        """Return name and shape."""
        return f"{self.name!r} {self.shape}"

    @property
    def policy(self) -> str:
        """The action on a gradient that does not fit."""
        return self.group["on_nonfinite"]

    def holds(self, gradient: Tensor) -> bool:
        """Return whether all entries fit; those that are not numbers do not."""
        return bool((gradient.abs() <= self.largest).all())


class GradientCheck:
    """The gradients of a plan, watched: facts known before are found once, so that a step only reads norms.

    Args:
        chunks: The plan.
        consensus: The other ranks, if there are some: all of them decide alike.
    """

    def __init__(self, chunks: list[Chunk], consensus: Consensus | None = None) -> None:
        self.consensus = consensus
        self.watched = [one for chunk in chunks for one in _watched(chunk)]
        self.device = chunks[0].params[0].device
        limits = [min(one.largest, HIGHEST) for one in self.watched]
        self.limits = torch.tensor(limits, device=self.device)
        params = [parameter for chunk in chunks for parameter in chunk.params]
        self.where = consensus.where(params) if consensus is not None else self.limits

    def norms(
        self, gradients: list[Tensor], references: list[Tensor], judged: Sequence[int] | None = None
    ) -> Tensor | None:
        """Return the 2-norm of every gradient, after checking that all are dense, finite and within range.

        Args:
            gradients: Gradients in the order of the plan.
            references: Gradients at the previous iterate, or an empty list.
            judged: Positions whose norms are read afterwards, by default all: without a check only they are computed.

        Returns:
            One number per gradient, 0 for those that nobody reads, or `None` if the step is to be skipped.

        Raises:
            RuntimeError: If a gradient is sparse, or is there on some ranks only.
            FloatingPointError: If a gradient is not finite, or too large for the dtype that its momentum is stored in,
                and its group's `on_nonfinite` is `raise`.
        """
        for one, gradient in zip(self.watched, gradients, strict=True):
            if gradient.layout != torch.strided:
                raise RuntimeError(f"The gradient of {one.name!r} is sparse. Build its embedding with `sparse=False`.")
        watches = any(one.policy != IGNORE for one in self.watched)
        if judged is not None and not watches and self.consensus is None:
            return self._norms_of(gradients, judged)
        points = [gradients, references] if references and watches else [gradients]
        rows = [self._norms(point) for point in points]
        norms = torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)
        if self.consensus is not None:
            norms, counts = self.consensus.whole_norms(norms, self.where)
            self.consensus.check_counts(counts)
        if not watches:  # else the host waits for the device
            return norms[0]
        within = norms <= self.limits
        if bool(within.all()):
            return norms[0]
        unfit = self._unfit(points)
        if not unfit:  # a norm may be out of range where the entries are not
            return norms[0]
        refused = [index for index in unfit if self.watched[index].policy == RAISE]
        if refused:
            raise self._error(points, refused)
        return None

    def _unfit(self, points: list[list[Tensor]]) -> list[int]:
        """Find the gradients that do not fit, at one of their two points."""
        flags = []
        for index, one in enumerate(self.watched):
            fits = one.policy == IGNORE or all(one.holds(point[index]) for point in points)
            flags.append(not fits)
        if self.consensus is not None:
            flags = self.consensus.anywhere(flags, self.where)
        return [index for index, unfit in enumerate(flags) if unfit]

    def _error(self, points: list[list[Tensor]], refused: list[int]) -> FloatingPointError:
        """Return the error that names the first of the refused gradients."""
        first = refused[:3]
        listed = ", ".join(str(self.watched[index]) for index in first)
        if len(refused) > len(first):
            listed += f" and {len(refused) - len(first)} more"
        infinite = []
        for index in range(len(self.watched)):
            finite = [bool(point[index].isfinite().all()) for point in points]
            infinite.append(not all(finite))
        if self.consensus is not None:
            infinite = self.consensus.anywhere(infinite, self.where)
        if not any(infinite[index] for index in refused):
            return FloatingPointError(
                f"Gradient too large for its `momentum_dtype` in {listed}. No weight and no state was changed. Take "
                "'bfloat16', which has the range of fp32, or set `on_nonfinite='skip'` to drop such steps."
            )
        return FloatingPointError(
            f"Non-finite gradient in {listed}. No weight and no state was changed. Lower `lr`, look for overflow in "
            "the loss, or set `on_nonfinite='skip'` to drop such steps."
        )

    def _norms_of(self, gradients: list[Tensor], judged: Sequence[int]) -> Tensor:
        """Return the norms of some gradients among zeros."""
        norms = [self.limits.new_zeros(())] * len(gradients)
        found = self._norms([gradients[index] for index in judged]) if judged else ()
        for index, norm in zip(judged, found, strict=True):
            norms[index] = norm
        return torch.stack(norms)

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        # The 2-norm is vectorised on a CPU, the maximum is not: 40 times slower.
        norms = torch._foreach_norm(tensors)
        if len({(norm.dtype, norm.device) for norm in norms}) == 1:
            return torch.stack(norms).to(self.device, torch.float32)
        return torch.stack([norm.float().to(self.device) for norm in norms])


def _watched(chunk: Chunk) -> Iterator[Watched]:
    """Find out what the momentum of each parameter of a chunk can hold."""
    kernel = ESTIMATORS[chunk.group["estimator"]].layout is not None  # its moments are in the parameter's dtype
    for name, parameter, factored in zip(chunk.names, chunk.params, chunk.factored, strict=True):
        own = torch.finfo(parameter.dtype).max
        kept = own
        if not kernel and not factored:
            kept = torch.finfo(dense_dtype(parameter, chunk.group)).max
        yield Watched(name, tuple(parameter.shape), chunk.group, min(kept, own))
