"""Closures that a step evaluates: once, or twice at two points with the same random numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor

from lightning_gluon.ranks.pieces import local, local_gradient
from lightning_gluon.two_point.exchange import exchanged_gradients
from lightning_gluon.two_point.reference import ReferencePoint
from lightning_gluon.two_point.streams import rng_state, set_rng_state

Closure: TypeAlias = Callable[[], object]

# Who takes the second gradient: `step(closure)` itself, a callback, a loop of the user's own, or nobody.
CLOSURE, CALLBACK, LOOP, NOBODY = "closure", "callback", "loop", "none"

MISSED = (
    "The gradients were taken at the weights, not at the transported point: call `step(closure)`, or run forward and "
    "backward under `with optimizer.at_reference():`, or add `lightning_gluon.callbacks.VarianceReduction()` to the "
    "Trainer's callbacks."
)
NO_CLOSURE = (
    "This method takes a second gradient, so `step` needs a closure, from the first step on: call `step(closure)`. "
    "Trainers that call `step()` themselves, such as that of transformers, cannot give one: take a method with one "
    "gradient there, such as 'gluon'. Under Lightning add `lightning_gluon.callbacks.VarianceReduction()` to the "
    "Trainer's callbacks. A loop of your own that takes it under `at_reference()` sets `optimizer.two_point = 'loop'`."
)
MANUAL = (
    "This method takes a second gradient, so under manual optimization `step` needs a closure, from the first step on. "
    "Call `optimizer.step(closure)`, and let the closure run `optimizer.zero_grad()`, the loss and "
    "`self.manual_backward(loss)`: it is evaluated at both points."
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


def evaluate(closure: Closure | None, reference: ReferencePoint, source: str) -> tuple[object, dict[Tensor, Tensor]]:
    """Run the closure, a second time at the previous iterate if nobody else does.

    Args:
        closure: Re-evaluates the model, fills `.grad` and returns the loss; `None` if the gradients are there already.
        reference: The point of the further gradient.
        source: Who takes that: `closure`, `callback`, `loop` or `none`.

    Returns:
        What the closure returned, and the gradients at the previous iterate, if it was taken there too.

    Raises:
        RuntimeError: If there is no closure that could give a second gradient, or gradients had to be taken at the
            transported point and were not.
    """
    own = source == CLOSURE and reference.point is not None
    if own:
        _check_closure(closure, reference)  # before the first step, which could still be taken
    if closure is None:
        moved, reference.visit.used = reference.visit.used, False
        if source == LOOP and reference.transported and reference.needed and not moved:
            raise RuntimeError(MISSED)
        return None, {}
    if not own or not reference.needed:
        return _loss_of(closure), {}
    if reference.transported:
        with reference.exchanged():
            return _loss_of(closure), {}
    return _run_twice(closure, reference)


def _loss_of(closure: Closure) -> object:
    with torch.enable_grad():
        return closure()


def _run_twice(closure: Closure, reference: ReferencePoint) -> tuple[object, dict[Tensor, Tensor]]:
    """Run the closure here and at the previous iterate, on the same random numbers; `.grad` is that of the first."""
    before = rng_state()
    loss = _loss_of(closure)
    after = rng_state()
    params = [parameter for group in reference.groups for parameter in group["params"]]
    try:
        set_rng_state(before)
        with exchanged_gradients(params, {}) as taken, reference.exchanged():
            _loss_of(_bare(closure))
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
    return gradient.new_zeros(()).expand_as(gradient) if old is None else local_gradient(parameter, old)


def _check_closure(closure: Closure | None, reference: ReferencePoint) -> None:
    """Raise if a closure cannot give the second gradient."""
    if closure is None:
        if not _prepares(reference):
            raise RuntimeError(NO_CLOSURE)
    elif _is_lightning(closure):
        if closure.args[0].automatic_optimization:
            raise RuntimeError(LIGHTNING)
        if getattr(closure.args[2], "__name__", "") == "do_nothing_closure":
            raise RuntimeError(MANUAL)


def _prepares(reference: ReferencePoint) -> bool:
    """Return whether this step only creates the state, as distributed checkpoints do: nothing may move in it."""
    if any(float(group["lr"]) != 0 for group in reference.groups):
        return False
    params = [parameter for group in reference.groups for parameter in group["params"]]
    return not any(bool(local(parameter.grad).any()) for parameter in params if parameter.grad is not None)


def _bare(closure: Closure) -> Closure:
    """Return Lightning's closure without the hooks around it, and any other as it is."""
    return closure.args[2] if _is_lightning(closure) else closure


def _is_lightning(closure: Closure) -> TypeGuard[partial[object]]:
    """Return whether Lightning built this closure: a partial of `Precision._wrap_closure`."""
    return isinstance(closure, partial) and getattr(closure.func, "__name__", "") == "_wrap_closure"
