"""Retractions: sets that weights are brought back to after the step, such as a sphere."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_gluon.norms.needs import Context, Needs


class Retraction(Needs, ABC):
    """Brings the matrices of a stack back to a set.

    Example:
        >>> class UnitRows(Retraction):
        ...     def retract_(self, weights, context):
        ...         weights.div_(weights.norm(dim=-1, keepdim=True))
    """

    @abstractmethod
    def retract_(self, weights: Tensor, context: Context) -> None:
        """Bring weights back, in place.

        Args:
            weights: Matrices `(count, rows, columns)` after the step, in fp32 or wider.
            context: The statistics that the retraction declares.
        """


RETRACTIONS: dict[str, Retraction] = {}
