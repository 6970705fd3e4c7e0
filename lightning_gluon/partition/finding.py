"""The answer of a rule, and answers that several rules give."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.place import Place

__all__ = ["Finding", "OtherFactor", "depthwise_filter", "whole_array"]


@dataclass(frozen=True)
class OtherFactor:
    """The other factor of a product that a parameter belongs to.

    Args:
        name: Qualified name of the other factor.
        gain: The factor s of `s B A`.
        rows: Rows of the smallest map, if `B A` is several maps in one.
    """

    name: str
    gain: float
    rows: int | None = None


@dataclass(frozen=True)
class Finding:
    """A role with its reason and matrices, and the other factor of a product."""

    role: str
    reason: str
    views: tuple[MatrixView, ...] = ()
    pair: OtherFactor | None = None

    @property
    def is_degenerate(self) -> bool:
        """True for one single matrix of one row or one column, such as a gate."""
        shapes = [shape for view in self.views for shape in view.shapes]
        return len(shapes) == 1 and min(shapes[0]) == 1


def whole_array(
    place: Place,
    *,
    transposed: bool = False,
) -> tuple[MatrixView, ...]:
    """Read an array as `(out, in)` or as a batch of such matrices; `transposed`: as `(in, out)`."""
    return (MatrixView.whole(place.shape, transposed=transposed),)


def depthwise_filter(place: Place) -> Finding:
    """Return the finding of depthwise filters."""
    return Finding("elementwise", f"depthwise filters ({place.kind}): each channel by itself, no map")
