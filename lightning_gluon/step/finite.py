"""Gradients before anything moves: they are dense, finite, and fit in what their momentum is stored in."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gluon.estimators.carry import dense_dtype
from lightning_gluon.step.plan import Chunk

RAISE, IGNORE = "raise", "ignore"  # of `on_nonfinite`; a third one skips the step


class GradientCheck:
    """What is known of a plan's gradients before a step: computed once per plan, so that a step only reads norms.

    Args:
        chunks: The plan.
    """

    def __init__(self, chunks: list[Chunk]) -> None:
        self.groups = [chunk.group for chunk in chunks for _ in chunk.indices]
        self.names = [name for chunk in chunks for name in chunk.names]
        self.device = chunks[0].params[0].device
        self.largest = [limit for chunk in chunks for limit in _limits(chunk)]
        highest = torch.finfo(torch.float32).max  # of a norm that is computed in fp32
        self.limits = torch.tensor([min(limit, highest) for limit in self.largest], device=self.device)

    def norms(self, gradients: list[Tensor], references: list[Tensor]) -> Tensor | None:
        """Return the 2-norm of every gradient, after checking that all are dense, finite and within range.

        Args:
            gradients: Gradients in the order of the plan.
            references: Gradients at the previous iterate, or an empty list.

        Returns:
            One number per gradient, or `None` if the step is to be skipped.

        Raises:
            RuntimeError: If a gradient is sparse.
            FloatingPointError: If a gradient is not finite, or too large for the dtype that its momentum is stored in,
                and its group's `on_nonfinite` is `raise`.
        """
        self._check_dense(gradients)
        norms = self._norms(gradients)
        policies = [group["on_nonfinite"] for group in self.groups]
        if set(policies) == {IGNORE}:  # else the host waits for the device
            return norms
        within = norms <= self.limits
        if references:
            within &= self._norms(references) <= self.limits
        if bool(within.all()):
            return norms
        points = [gradients, references] if references else [gradients]
        bad = self._bad(points, policies)
        if not bad:  # a norm may be out of range where the entries are not
            return norms
        refused = [index for index in bad if policies[index] == RAISE]
        if refused:
            raise self._error(points, refused)
        return None

    def _check_dense(self, gradients: list[Tensor]) -> None:
        for name, gradient in zip(self.names, gradients, strict=True):
            if gradient.layout != torch.strided:
                raise RuntimeError(f"The gradient of {name!r} is sparse. Build its embedding with `sparse=False`.")

    def _error(self, points: list[list[Tensor]], refused: list[int]) -> FloatingPointError:
        """Return the error that names the first of the refused gradients."""
        some = [f"{self.names[index]!r} {tuple(points[0][index].shape)}" for index in refused[:3]]
        listed = ", ".join(some)
        if len(refused) > len(some):
            listed += f" and {len(refused) - len(some)} more"
        if all(bool(point[index].isfinite().all()) for point in points for index in refused):
            return FloatingPointError(
                f"Gradient too large for its `momentum_dtype` in {listed}. No weight and no state was changed. Take "
                "'bfloat16', which has the range of fp32, or set `on_nonfinite='skip'` to drop such steps."
            )
        return FloatingPointError(
            f"Non-finite gradient in {listed}. No weight and no state was changed. Lower `lr`, look for overflow in "
            "the loss, or set `on_nonfinite='skip'` to drop such steps."
        )

    def _bad(self, points: list[list[Tensor]], policies: list[str]) -> list[int]:
        """Return the positions of gradients that are not finite, or out of range, at one of their two points."""
        bad = []
        for index, policy in enumerate(policies):
            if policy != IGNORE and not all(self._fits(point[index], index) for point in points):
                bad.append(index)
        return bad

    def _fits(self, gradient: Tensor, index: int) -> bool:
        return bool((gradient.abs() <= self.largest[index]).all())  # false for what is not a number

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        # The 2-norm is vectorised on a CPU, the maximum is not: 40 times slower.
        return torch.stack([norm.float().to(self.device) for norm in torch._foreach_norm(tensors)])


def _limits(chunk: Chunk) -> list[float]:
    """Return the largest entry that the momentum of each parameter can hold."""
    limits = []
    for parameter, factored in zip(chunk.params, chunk.factored, strict=True):
        work = torch.promote_types(parameter.dtype, torch.float32)
        kept = work if factored else dense_dtype(parameter, chunk.group)
        limits.append(min(torch.finfo(kept).max, torch.finfo(parameter.dtype).max))
    return limits
