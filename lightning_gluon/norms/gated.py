"""The spectral LMO of a momentum that is large enough; a smaller one is the step itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import MATRIX, length
from lightning_gluon.norms.needs import Context
from lightning_gluon.norms.spectral import Spectral, singular_values


def _frobenius_norm(matrices: Tensor) -> Tensor:
    return length(matrices, MATRIX)


def _smallest_gap(matrices: Tensor) -> Tensor:
    """Return the smallest distance of two singular values; infinity if there is only one."""
    values = singular_values(matrices)
    if values.shape[-1] < 2:
        return torch.full_like(values, math.inf)[..., None]
    gaps = values.diff().neg()  # they are sorted, largest first
    return gaps.amin(-1)[..., None, None]


GATE_FORMS: dict[str, Callable[[Tensor], Tensor]] = {"norm": _frobenius_norm, "gap": _smallest_gap}


@dataclass(frozen=True)
class GatedSpectral(Spectral):
    """`s U V^T` of a matrix that passes the gate, and the matrix itself if it does not (MiMuon).

        D = s U V^T    if f(G) >= gate,        f(G) = ||G||_F                               form "norm"
            G          else                           min_{i != j} |sigma_i - sigma_j|      form "gap"

    The form `norm` is the one that is deployed, `gap` that of the paper. `gap` takes an exact decomposition, and the
    host waits for it. A gate of 0 is `Spectral`, bit for bit. With a larger one the step depends on the scale of the
    gradients, and can be longer than 1. Lengths and dual norms are the spectral ones.

    Shapes: (..., m, n) = (..., out, in).

    Args:
        scaling: As in `Spectral`; a matrix that does not pass is not scaled.
        orthogonalizer: As in `Spectral`.
        steps: As in `Spectral`.
        dtype: As in `Spectral`.
        gate: The threshold tau, in the units of the gradients.
        form: `norm` or `gap`.

    Raises:
        ValueError: If there is no gate, and as in `Spectral`.

    References:
        MiMuon, arXiv 2605.19619.

    Example:
        >>> norm = GatedSpectral("none", "svd", gate=1.0)
        >>> norm.lmo(torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.3, 0.0], [0.0, 0.4]]])).diagonal(0, -2, -1)
        tensor([[1.0000, 1.0000],
                [0.3000, 0.4000]])
    """

    options: ClassVar[Mapping[str, str]] = {**Spectral.options, "gate": "gate", "gate_form": "form"}
    reads_scales: ClassVar[bool] = True

    gate: float | None = 0.0
    form: str = "norm"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.gate is None:
            raise ValueError(
                "Expected `gate` to be a number >= 0, but got None: the paper prints no value. Pass `gate=`, the "
                "Frobenius norm of a momentum below which it is not orthogonalised; 0 is Muon."
            )

    @property
    def attains(self) -> bool:  # type: ignore[override]
        """True without a gate."""
        return not self.gate

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        """Return `U V^T` of every matrix that passes, of the others the matrix without the scale."""
        if not self.gate:
            return super().lmo_(stack, context)
        assert context.scales is not None
        size = GATE_FORMS[self.form](stack)
        shut = size < self.gate
        raw = stack / context.scales
        units = super().lmo_(stack, context)
        return torch.where(shut, raw, units.to(raw.dtype))

    def lmo(self, g: Tensor) -> Tensor:
        """Return `s U V^T`, or `g`."""
        matrices, _ = self._matrices(g)
        polar = super().lmo(g)
        if not self.gate:
            return polar
        size = GATE_FORMS[self.form](matrices)
        shut = size < self.gate
        chosen = torch.where(shut, matrices, polar.view_as(matrices))
        return chosen.view(g.shape)
