"""The previous iterate X_prev, for the methods that take a second gradient there, with or without a copy of it.

    copy    X_prev itself: exact, as many bytes as the weights
    step    s = X - X_prev in bf16, 2 bytes per entry:  X_prev ~ fl(X - s)
    step8   s in 8 bits with one scale per row, about 1 byte per entry

Without a copy the exchange has to be undone exactly: `fl(fl(X - s) + s) = X`. Floating-point addition does not promise
that. So every step ends by snapping the new weights to a point that does, `X <- fl(fl(X - s) + s)`. This moves an entry
by no more than the rounding of its own update. The two exchanges then need no memory at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lightning_gluon.options import Group
from lightning_gluon.ranks.pieces import has_whole_rows, is_sharded, local, meta_like, piece_state
from lightning_gluon.two_point.exchange import Detour, Move, Shift, Swap, exchanged, merged
from lightning_gluon.two_point.transport import TRANSPORTS, MutableEntries, Transport

REFERENCES = ("copy", "step", "step8")


TRANSPORT_OF = {transport.key: transport for transport in TRANSPORTS.values()}


def record_(kind: str, state: MutableEntries, parameter: Tensor, before: Tensor) -> None:
    """Store where the parameter came from, and with a rebuilt reference snap it to an exactly reversible point.

    Args:
        kind: `copy`, `step` or `step8`.
        state: The parameter's optimizer state, which gains or updates the entries of that kind.
        parameter: The weights after the step; snapped in place unless `kind` is `copy`.
        before: The weights before the step, in the same dtype.
    """
    if kind == "copy":
        _store(state, "previous", before)
        return
    step = parameter.to(torch.float32 if parameter.dtype != torch.float64 else torch.float64) - before
    if kind == "step":
        _store(state, "displacement", step.to(torch.bfloat16))
    else:
        scale = _row_scale(step)
        _store(state, "displacement", step.div_(scale).round_().to(torch.int8))
        _store(state, "displacement_scale", scale.to(torch.float32))
    step = _stored_step(kind, state, parameter)
    # One snap is enough: none of 6e8 random pairs, powers of two included, needed another.
    parameter.sub_(step).add_(step)


def way_back(kind: str, state: Mapping[str, Tensor], parameter: Tensor) -> Move:
    """Return the move that takes the weights to the previous iterate and back, bit for bit."""
    if kind == "copy":
        return Swap([parameter], [state["previous"]])
    return Shift(parameter, partial(_stored_step, kind, state, parameter))


def way_ahead(transport: Transport, group: Group, state: Mapping[str, Tensor], parameter: Tensor) -> Move:
    """Return the move to a transported point and back."""
    reach = transport.reach(group)
    return Detour(parameter, lambda here: parameter.add_(transport.ahead(state, here), alpha=reach))


def reference_layout(kind: str, parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of one parameter's reference, by key.

    Args:
        kind: `copy`, `step` or `step8`, or what a transport keeps.
        parameter: The parameter.

    Returns:
        Tensors on the meta device: shapes and dtypes.

    Example:
        >>> {key: entry.dtype for key, entry in reference_layout("step", torch.ones(2, 3)).items()}
        {'displacement': torch.bfloat16}
    """
    shape, kind = parameter.shape, form_of(kind, parameter)
    if kind == "copy":
        return {"previous": meta_like(parameter)}
    if kind == "step":
        return {"displacement": torch.empty(shape, dtype=torch.bfloat16, device="meta")}
    if kind not in REFERENCES:
        return {kind: TRANSPORT_OF[kind].layout(parameter)}
    scale = (shape[0], *(1 for _ in shape[1:])) if parameter.ndim > 1 else tuple(1 for _ in shape)
    return {
        "displacement": torch.empty(shape, dtype=torch.int8, device="meta"),
        "displacement_scale": torch.empty(scale, dtype=torch.float32, device="meta"),
    }


def form_of(kind: str, parameter: Tensor) -> str:
    """Return how the previous iterate of one parameter is kept: 8 bits need rows that no other rank has a part of."""
    return "step" if kind == "step8" and not has_whole_rows(parameter) else kind


def _store(state: MutableEntries, key: str, value: Tensor) -> None:
    if key in state:
        state[key].copy_(value)
    else:
        state[key] = value.clone() if key == "previous" else value


def _row_scale(step: Tensor) -> Tensor:
    """Return `max |step| / 127` of every row, 1 if a row has not moved."""
    dims = tuple(range(1, step.ndim)) if step.ndim > 1 else tuple(range(step.ndim))
    if not step.numel():  # a piece of none of the rows
        return step.new_ones([1 if dim in dims else size for dim, size in enumerate(step.shape)])
    top = step.abs().amax(dim=dims, keepdim=True) if step.ndim else step.abs()
    return torch.where(top > 0, top / 127, torch.ones_like(top))


def _stored_step(kind: str, state: Mapping[str, Tensor], parameter: Tensor) -> Tensor:
    """Return the stored step, dequantised."""
    if kind == "step":
        return state["displacement"]
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return state["displacement"].to(wide).mul_(state["displacement_scale"])


@dataclass
class Visit:
    """A stay at the reference point: the moves there, and whether it was used since the last step."""

    moves: list[Move] = field(default_factory=list)
    used: bool = False
    folded: bool = False

    @property
    def away(self) -> bool:
        """True while weights are at the reference point."""
        return any(move.away for move in self.moves)


@dataclass
class ReferencePoint:
    """The point of an optimizer's further gradient: the previous iterate, or one where its only gradient is taken.

    The whole model moves together, whatever each group's estimator is.

    Args:
        groups: The parameter groups.
        state: The optimizer's state, by parameter.
        points: For every group the point that its estimator needs: `None`, `previous` or one of `TRANSPORTS`.
        visit: What is remembered between calls.

    Raises:
        ValueError: If groups need different points.
    """

    groups: Sequence[Group]
    state: Mapping[Tensor, dict[str, Tensor]]
    points: Sequence[str | None]
    visit: Visit

    def __post_init__(self) -> None:
        """Find the one point that all groups agree on."""
        points = set(self.points) - {None}
        if len(points) > 1:
            raise ValueError("Estimators that need gradients at different points cannot be mixed in one optimizer.")
        self.point = points.pop() if points else None

    @property
    def kind(self) -> str | None:
        """Form in which it is kept, the same for all groups; `None` if no group needs it."""
        if self.point is None:
            return None
        if self.transport is not None and self.transport.key != "previous":
            return self.transport.key
        return next((group["reference"] for group in self.groups if "reference" in group), REFERENCES[0])

    @property
    def needed(self) -> bool:
        """True if the next step needs gradients at the reference point: from the second step on."""
        return any(self._moves_group(group, point) for group, point in zip(self.groups, self.points, strict=True))

    def _moves_group(self, group: Group, point: str | None) -> bool:
        if point is None or group["steps"] == 0:
            return False
        return self.transport is None or self.transport.reach(group) != 0

    @property
    def transport(self) -> Transport | None:
        """The way to the point, where it is the only one at which gradients are taken."""
        return None if self.point is None else TRANSPORTS.get(self.point)

    @property
    def transported(self) -> bool:
        """True if the point is the only one at which gradients are taken."""
        return self.transport is not None

    @property
    def exact(self) -> bool:
        """True if there is a copy of every weight's previous value, bit for bit."""
        return self.kind == "copy"

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Put all weights at the reference point, and back bit for bit on leaving.

        Yields:
            Nothing.

        Raises:
            RuntimeError: If the method needs no reference, has taken no step, or is at it already.
        """
        if not self.needed or self.visit.away:
            raise RuntimeError(
                "There is no reference point now: the method needs none, no step was taken, or it is in use."
            )
        self.visit.used = True
        self.visit.moves = self._moves()
        with exchanged(self.visit.moves):
            yield
        self.visit.moves = []

    def _moves(self) -> list[Move]:
        moves: list[Move] = []
        for group, point in zip(self.groups, self.points, strict=True):
            for parameter in group["params"]:
                move = self._move(group, point, parameter)
                if move is not None:
                    moves.append(move)
        return merged(moves)

    def _move(self, group: Group, point: str | None, parameter: Tensor) -> Move | None:
        """Return the move of one parameter; `None` if nothing is kept of it, or its group stays."""
        kind, state = self.kind, piece_state(self.state.get(parameter, {}), parameter)
        if kind is None or not state.keys() & reference_layout(kind, parameter).keys():
            return None
        if self.transport is None:
            return way_back(form_of(kind, parameter), state, local(parameter))
        return way_ahead(self.transport, group, state, local(parameter)) if point is not None else None

    @contextmanager
    def tracking(self, group: Group, params: Sequence[Tensor]) -> Iterator[None]:
        """Record where parameters come from while they are moved, and put them where their step begins.

        Args:
            group: Their group.
            params: The parameters.

        Yields:
            Nothing.
        """
        if self.point is None:
            yield
            return
        if self._copies_(params):
            yield
            return
        before = [local(parameter).clone() for parameter in params]
        if self.transport is not None and self._own_point(group) is not None:
            for parameter in params:
                self.transport.begin_(group, piece_state(self.state[parameter], parameter), local(parameter))
        yield
        for parameter, previous in zip(params, before, strict=True):
            self._record(group, parameter, previous)

    def _copies_(self, params: Sequence[Tensor]) -> bool:
        """Copy weights to where the last previous ones are kept, if that is all there is to record."""
        if self.kind != "copy" or self.transport is not None:
            return False
        kept = [piece_state(self.state[parameter], parameter).get("previous") for parameter in params]
        known = [previous for previous in kept if previous is not None]
        if len(known) < len(params):
            return False
        torch._foreach_copy_(known, list(map(local, params)))
        return True

    def _own_point(self, group: Group) -> str | None:
        return next(point for other, point in zip(self.groups, self.points, strict=True) if other is group)

    def _record(self, group: Group, parameter: Tensor, before: Tensor) -> None:
        state, piece = piece_state(self.state[parameter], parameter), local(parameter)
        if self.transport is not None:
            self.transport.record_(group, state, piece, before)
        elif self.kind is not None:
            record_(form_of(self.kind, parameter), state, piece, before)

    def stay(self, stepped: set[Tensor]) -> None:
        """Record that a parameter which took no step was already here one iterate ago."""
        if self.point is None:
            return
        for group in self.groups:
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if state and parameter not in stepped:
                    self._record(group, parameter, local(parameter).clone())

    @contextmanager
    def folding(self) -> Iterator[None]:
        """Let gradients that are accumulated inside enter `.grad` as `-f c_old`, which saves their buffer.

            M <- b (M + gamma (c_new - c_old)) + (1 - b) c_new = b M + w (c_new - f c_old)
            w = 1 - b (1 - gamma),    f = b gamma / w

        Afterwards `.grad` holds `c_new - f c_old`, all that the recursion needs: it takes it for `c_new` and zero for
        `c_old`. STORM itself has gamma = 1, hence w = 1 and f = b. With
        `fold="bfloat16"` the first gradient waits in bf16 while the second one's activations take their room.

        Yields:
            Nothing; run the backward pass of the second gradient inside.
        """
        hooks, waiting = [], {}
        shares: dict[Tensor, float] = {}
        for group in self.groups:
            asked = getattr(torch, group["fold"]) if isinstance(group.get("fold"), str) else None
            for parameter in filter(_learns, group["params"]):
                share = self._share(group, parameter)
                if is_sharded(parameter):  # autograd sees the whole weights alone, so no hook is called
                    shares[parameter] = share
                    waiting.update(_set_aside_([parameter], asked or parameter.dtype))
                    continue
                hooks.append(parameter.register_hook(_times(share)))
                if asked is not None:
                    waiting.update(_set_aside_([parameter], asked))
        try:
            yield
            self.visit.folded = True
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, share in shares.items():
                if parameter.grad is not None:
                    local(parameter.grad).mul_(share)
            for parameter, first in waiting.items():
                _add_to_gradient_(parameter, first)

    def _share(self, group: Group, parameter: Tensor) -> float:
        """Return the factor of `c_old`; on a parameter's first step, where c_old is c_new, it is zero."""
        if not group.get("fold") or parameter not in self.state:
            return 0.0
        kept, gamma = group["momentum"], group.get("gamma", 1.0)
        return -kept * gamma / (1 - kept * (1 - gamma))


def _learns(parameter: Tensor) -> bool:
    return parameter.requires_grad


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * factor


def _add_to_gradient_(parameter: Tensor, first: Tensor) -> None:
    """Add a gradient that was set aside."""
    second, first = parameter.grad, first.to(parameter.dtype)
    if second is None:
        parameter.grad = first
    else:
        local(second).add_(local(first))


def _set_aside_(params: Iterable[Tensor], dtype: torch.dtype) -> dict[Tensor, Tensor]:
    """Take gradients off their parameters, and return them in another dtype."""
    aside = {}
    for parameter in params:
        if parameter.grad is not None:
            aside[parameter], parameter.grad = parameter.grad.to(dtype), None
    return aside
