"""Closures that a step evaluates: once, or twice at two points with the same random numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from lightning_gluon.two_point.exchange import exchanged_gradients
from lightning_gluon.two_point.reference import ReferencePoint
from lightning_gluon.two_point.streams import rng_state, set_rng_state

Closure: TypeAlias = Callable[[], Any]

# Who takes the second gradient: `step(closure)` itself, a callback, or nobody.
CLOSURE, CALLBACK, NOBODY = "closure", "callback", "none"

MISSED = (
    "The gradients were taken at the weights, not at the transported point: call `step(closure)`, or run forward and "
    "backward under `with optimizer.at_reference():`, or add `lightning_gluon.callbacks.VarianceReduction()` to the "
    "Trainer's callbacks."
)
LIGHTNING = (
    "This method takes a second gradient, which the closure alone cannot give exactly under Lightning. Add "
    "`lightning_gluon.callbacks.VarianceReduction()` to the Trainer's callbacks, or build the optimizer with "
    "`lightning_gluon.configure_optimizers`, which attaches it."
)
MISSING = (
    "The gradients at the previous iterate are missing: call `step(closure)`, or add "
    "`lightning_gluon.callbacks.VarianceReduction()` to the Trainer's callbacks."
)


def evaluate(closure: Closure | None, reference: ReferencePoint, source: str) -> tuple[Any, dict[Tensor, Tensor]]:
    """Run the closure, a second time at the previous iterate if nobody else does.

    Args:
        closure: Re-evaluates the model, fills `.grad` and returns the loss; `None` if the gradients are there already.
        reference: The point of the further gradient.
        source: Who takes that: `closure`, `callback` or `none`.

    Returns:
        What the closure returned, and the gradients at the previous iterate, if it was taken there too.

    Raises:
        RuntimeError: If gradients had to be taken at the transported point and were not, or Lightning's closure cannot
            give a second gradient.
    """
    own = source == CLOSURE
    if closure is None:
        moved, reference.visit.used = reference.visit.used, False
        if own and reference.transported and reference.needed and not moved:
            raise RuntimeError(MISSED)
        return None, {}
    if own and reference.point is not None:
        _check_lightning(closure)  # before the first step, which could still be taken
    if not own or not reference.needed:
        return _evaluate(closure), {}
    if reference.transported:
        with reference.exchanged():
            return _evaluate(closure), {}
    return _evaluate_twice(closure, reference)


def _evaluate(closure: Closure) -> Any:
    with torch.enable_grad():
        return closure()


def _evaluate_twice(closure: Closure, reference: ReferencePoint) -> tuple[Any, dict[Tensor, Tensor]]:
    """Run the closure here and at the previous iterate, on the same random numbers; `.grad` is that of the first."""
    before = rng_state()
    loss = _evaluate(closure)
    after = rng_state()
    params = [parameter for group in reference.groups for parameter in group["params"]]
    try:
        set_rng_state(before)
        with exchanged_gradients(params, {}) as taken, reference.exchanged():
            _evaluate(_bare(closure))
    finally:
        set_rng_state(after)
    return loss, taken.gradients


def old_gradients(
    params: list[Tensor], gradients: list[Tensor], reference: ReferencePoint, taken: dict[Tensor, Tensor]
) -> list[Tensor]:
    """Return `c_old` of parameters, once a first step has been taken.

    Args:
        params: The parameters.
        gradients: Their gradients.
        reference: The point of the further gradient.
        taken: The gradients there.

    Returns:
        One per parameter: zero for one that was not used at the previous iterate or is folded, and `c_new` for one
        that takes its first step.

    Raises:
        RuntimeError: If nobody has taken them.
    """
    if not taken and not reference.visit.folded:
        raise RuntimeError(MISSING)
    return [_old(one, new, reference, taken) for one, new in zip(params, gradients, strict=True)]


def _old(parameter: Tensor, gradient: Tensor, reference: ReferencePoint, taken: dict[Tensor, Tensor]) -> Tensor:
    if parameter not in reference.state:
        return gradient
    old = taken.get(parameter)
    return gradient.new_zeros(()).expand_as(gradient) if old is None else old


def _check_lightning(closure: Closure) -> None:
    if _is_lightning(closure) and closure.args[0].automatic_optimization:
        raise RuntimeError(LIGHTNING)


def _bare(closure: Closure) -> Closure:
    """Return Lightning's closure without the hooks around it, and any other as it is."""
    return closure.args[2] if _is_lightning(closure) else closure


def _is_lightning(closure: Closure) -> TypeGuard[partial[Any]]:
    """Return whether Lightning built this closure: a partial of `Precision._wrap_closure`."""
    return isinstance(closure, partial) and getattr(closure.func, "__name__", "") == "_wrap_closure"
