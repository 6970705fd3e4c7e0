"""Momentum estimators, which stand in for the gradient, as rows of a table.

An estimator is a recursion over buffers that are kept between steps. `b` is the weight on the OLD momentum, `c_new` the
gradient of this step's sample at the current weights. With `c_old` that of the SAME sample at a reference point,

    ema        M <- b M + (1 - b) c_new
    nesterov   M <- b M + (1 - b) c_new,               direction b M + (1 - b) c_new
    mvr1       M <- b (M + gamma D) + (1 - b) c_new,                   D = c_new - c_old
    mvr2       G <- (1 - q) (G + gamma D) + q c_new,   M <- b M + (1 - b) G
    mvr3       G as in mvr2,                           M <- b M + (1 - b) G + b gamma D
    mars       c  = c_new + gamma b / (1 - b) D, clipped;              M <- b M + (1 - b) c
    igt        M <- b M + (1 - b) c_new, with c_new taken at Y = X + lookahead b / (1 - b) (X - X_prev)
    dual_ema   direction b M + (1 - b) c_new,          M <- b2 M + (1 - b2) c_new
    ef21       M as ema, ef21_mvr as mvr1, ef21_sarah as mvr1 with b = 1 and restarts; the direction is the mean of
               what workers have sent of their M, see `lightning_gluon.estimators.ef21`
    averaged, anchored     ema, with c_new taken beside the weights, see `lightning_gluon.two_point.transport`
    dual, mix  kernels that change while they train, see `lightning_gluon.estimators.kernels`

gamma = 1 is the method of the papers: mvr1 is `M <- c_new + b (M - c_old)`, STORM. To any gamma the estimate is
`(1 - gamma) ema + gamma mvr1`. At 0 nothing is taken at another point and no previous iterate is kept; nor is it where
lookahead is 0. "auto" is an estimate of gamma, see `lightning_gluon.estimators.gamma`.

Every buffer starts at the first gradient, or at zero if the method says so (`start`), and `c_old` at the first step
is `c_new`: the first direction is a multiple of `c_new` for all of them, and no row needs a special first step.

A new estimator is one function and one row of `ESTIMATORS`.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.adamw import adamw_, adamw_layout
from lightning_gluon.estimators.ef21 import EF21_OPTIONS, MESSAGES, correspond
from lightning_gluon.estimators.gamma import live_gamma
from lightning_gluon.estimators.kernels import (
    Buffers,
    GroupOptions,
    Kernel,
    Tensors,
    Weight,
    add_,
    carried_kernel,
    dual,
    dual_at,
    dual_kernel,
    ema_kernel,
    mix,
    mix_at,
    mix_kernel,
    nesterov_kernel,
)
from lightning_gluon.options import check_registered
from lightning_gluon.registry import add_row

__all__ = ["ESTIMATORS", "Estimator"]

Recursion = Callable[[Buffers, Tensors, Tensors, GroupOptions], Tensors]
StepKernel = Callable[[MutableMapping[Tensor, Any], GroupOptions, Tensors, Tensors], None]


@dataclass(frozen=True)
class Estimator:
    """One momentum estimator: its recursion, its buffers, and the gradients it needs.

        M <- update(M, c_new, c_old),        such as `b M + (1 - b) c_new`

    Shapes: buffers, gradients and directions are lists of tensors, each of its parameter's shape.

    Args:
        update: `(buffers, c_new, c_old, options) -> direction`; advances the buffers in place, may return one of them,
            and never writes to `c_new` or `c_old`. It acts on entries alone, since many ranks hold pieces; norms of
            whole tensors come from `options["norms"]`, if that is there.
        buffers: Names of the persistent buffers, each laid out like the parameter.
        reference: Place of a further gradient: `None` (none is needed), `"previous"` (`c_old`, the same sample at the
            last iterate), or one of `lightning_gluon.two_point.transport.TRANSPORTS` (`c_new` itself is taken there).
        share: Name of the option that scales what is gained there; at 0 no further gradient is needed.
        options: Options of the estimator with their defaults, beyond `momentum`.
        schedule: `(options) -> options`, for a row whose numbers change from step to step: those that do, numbers or
            lists of numbers. It may read `steps` and, with `length`, `total_steps`.
        length: Whether it needs to know how many steps the training has.
        count: Name of the option that says how many of the buffers there are; default: all.
        kernel: `(options) -> Kernel | None`, for a row that is linear in past gradients.
        messages: Names of the buffers that sum up messages between workers: the worker's own sum, and everybody's.
            They begin at zero. `update` gets the `exchange` then, and which parameters are the `first` time sent.
        step_: `(state, group, params, gradients)`, for a row that also moves the weights, by its own kernel; such
            a row has no recursion.
        layout: `(parameter) -> {key: tensor on the meta device}`, for such a row: what it keeps.

    References:
        A. Cutkosky and F. Orabona, "Momentum-Based Variance Reduction in Non-Convex SGD", arXiv 1905.10018.
        "Gluon-MVR", arXiv 2512.16598.

    Example:
        >>> mvr1 = ESTIMATORS["mvr1"]
        >>> mvr1.gradients(mvr1.options), mvr1.gradients({"gamma": 0.0})
        (2, 1)
        >>> mvr1.point(mvr1.options), mvr1.names(mvr1.options), mvr1.at(mvr1.options) is mvr1.options
        ('previous', ('momentum',), True)
    """

    update: Recursion
    buffers: tuple[str, ...] = ("momentum",)
    reference: str | None = None
    share: str | None = None
    options: GroupOptions = field(default_factory=dict)
    schedule: Callable[[GroupOptions], GroupOptions] | None = None
    length: bool = False
    count: str | None = None
    kernel: Callable[[GroupOptions], Kernel | None] | None = None
    messages: tuple[str, ...] = ()
    step_: StepKernel | None = None
    layout: Callable[[Tensor], dict[str, Tensor]] | None = None

    def point(self, options: GroupOptions) -> str | None:
        """Return the place of a further gradient, see `reference`.

        Args:
            options: Options of a group; a row whose `share` is 0 there needs no further gradient.
        """
        used = self.share is None or options[self.share] != 0
        return self.reference if used else None

    def at(self, options: GroupOptions) -> GroupOptions:
        """Return the options of this step, as `update` reads them.

        Args:
            options: Options of a group.
        """
        changing = self.changing(options)
        return {**options, **changing} if changing else options

    def changing(self, options: GroupOptions) -> GroupOptions:
        """Return the numbers of this step that are not those of the one before, see `schedule`.

        Args:
            options: Options of a group.

        Example:
            >>> ESTIMATORS["mvr1"].changing({"gamma": "auto", "gamma_moments": (0.2, 0.8)})
            {'gamma': 0.25}
        """
        return {} if self.schedule is None else self.schedule(options)

    def names(self, options: GroupOptions) -> tuple[str, ...]:
        """Return the names of the buffers that are kept under these options.

        Args:
            options: Options of a group.
        """
        if self.messages and options["workers"] == 1:  # everybody's sum is the worker's own
            return self.buffers[:-1]
        return self.buffers if self.count is None else self.buffers[: options[self.count]]

    def gradients(self, options: GroupOptions) -> int:
        """Return the gradients of one sample that a step costs.

        Args:
            options: Options of a group.
        """
        return 2 if self.point(options) == "previous" else 1


def _ema(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    momentum = buffers["momentum"]
    torch._foreach_lerp_(momentum, new, 1 - options["momentum"])
    return momentum


def _nesterov(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    momentum = _ema(buffers, new, old, options)
    return list(torch._foreach_lerp(new, momentum, options["momentum"]))


def _recursive_(buffer: Tensors, new: Tensors, old: Tensors, keep: float, gamma: Weight) -> None:
    """Advance a buffer by `keep (buffer + gamma (new - old)) + (1 - keep) new`."""
    if not isinstance(gamma, Tensor) and gamma == 0:
        torch._foreach_lerp_(buffer, new, 1 - keep)
        return
    torch._foreach_sub_(buffer, _damped(new, old, gamma))  # the difference first, so equal pairs cancel exactly
    torch._foreach_mul_(buffer, keep)
    torch._foreach_add_(buffer, new)


def _damped(new: Tensors, old: Tensors, gamma: Weight) -> Tensors:
    """Return `new - gamma (new - old)`: what stands in for `old` in a damped correction."""
    if isinstance(gamma, Tensor):
        return [gradient.lerp(other, gamma) for gradient, other in zip(new, old, strict=True)]
    return old if gamma == 1 else list(torch._foreach_lerp(new, old, gamma))


def _mvr1(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    _recursive_(buffers["momentum"], new, old, options["momentum"], options["gamma"])
    return buffers["momentum"]


def _mvr2(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    _recursive_(buffers["gradient_estimate"], new, old, 1 - options["q"], options["gamma"])
    return _ema(buffers, buffers["gradient_estimate"], old, options)


def _mvr3(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    momentum = _mvr2(buffers, new, old, options)
    weight = options["momentum"] * options["gamma"]
    if isinstance(weight, Tensor) or weight:
        add_(momentum, list(torch._foreach_sub(new, old)), weight)
    return momentum


def _mars(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    weight = options["gamma"] * options["momentum"] / (1 - options["momentum"])
    corrected = list(torch._foreach_sub(new, old))
    torch._foreach_mul_(corrected, weight)
    torch._foreach_add_(corrected, new)
    if options["clip"]:
        norms = options.get("norms", torch._foreach_norm)(corrected)
        shrink = [norm.div(options["clip"]).clamp_(min=1.0) for norm in norms]
        torch._foreach_div_(corrected, shrink)
    return _ema(buffers, corrected, old, options)


def _mars_approximate(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    direction = _mars(buffers, new, buffers["last_gradient"], options)
    torch._foreach_copy_(buffers["last_gradient"], new)
    return direction


def _dual_ema(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    direction = list(torch._foreach_lerp(new, buffers["momentum"], options["momentum"]))
    torch._foreach_lerp_(buffers["momentum"], new, 1 - options["momentum_carry"])
    return direction


def _ef21(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    _ema(buffers, new, old, options)
    return correspond(buffers, options)


def _ef21_mvr(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    _mvr1(buffers, new, old, options)
    return correspond(buffers, options)


def _ef21_sarah(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    restarts = options["steps"] % options["sarah_restart"] == 0
    _recursive_(buffers["momentum"], new, old, 0.0 if restarts else 1.0, 1.0)
    return correspond(buffers, options)


def _uncorrected(options: GroupOptions) -> Kernel | None:
    """Return the kernel of the rows that are an ema without their correction; with it there is none."""
    return ema_kernel(options) if options["gamma"] == 0 and options.get("clip") is None else None


def _nested(options: GroupOptions) -> Kernel | None:
    """Return the kernel of an ema of an ema, which `mvr2` and `mvr3` are without their correction."""
    if options["gamma"] != 0:
        return None
    outer, inner = ema_kernel(options), ema_kernel({"momentum": 1 - options["q"]})
    return Kernel(outer.newest * inner.newest, outer.age + inner.age)


def _against_the_last(options: GroupOptions) -> Kernel | None:
    """Return the kernel of an ema of `g + w (g - g_last)`, which `mars_approximate` is without its clip."""
    if options["clip"]:
        return None
    plain = ema_kernel(options)
    weight = options["gamma"] * options["momentum"] / (1 - options["momentum"])
    return Kernel(plain.newest * (1 + weight), plain.age - weight)


def _none(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    raise NotImplementedError("This row moves the weights itself and has no direction.")


# Rows with a share of the correction by a second gradient, at the previous iterate.
_corrected = partial(Estimator, reference="previous", share="gamma", schedule=live_gamma)

ESTIMATES = ("momentum", "gradient_estimate")
MVR1_OPTIONS = {"gamma": 1.0, "reference": "copy", "fold": False}
MVR2_OPTIONS = {"gamma": 1.0, "q": 0.1, "reference": "copy"}
SKETCH_OPTIONS = {"rank": None, "oversampling": 5, "power_iterations": 1, "seed": 0}
CARRY_OPTIONS = {**SKETCH_OPTIONS, "factor_dtype": None, "feedback": None}
MARS_OPTIONS = {"gamma": 0.025, "clip": 1.0}  # MARS 2411.10438, section 5: gamma = 0.025, ||c|| <= 1

# The field's: .6 of an average of 99 steps of some 3,100, and .45 of the way from one of 100 of some 2,600, which grows
# over the last fifth. Nothing was measured here yet.
AVERAGED_OPTIONS = {"lookahead": 0.6, "average_age": 0.032}
ANCHORED_OPTIONS = {"lookahead": 0.45, "average_age": 0.039, "ramp": 0.2}

COMPRESSED = ("momentum", *MESSAGES)

# As long as a momentum of .9 remembers. Not measured yet.
SARAH_OPTIONS = {**EF21_OPTIONS, "sarah_restart": 10, "reference": "copy"}

AVERAGES = tuple(f"momentum{number}" for number in range(8))

# (.1, 30 steps) -> (.14, 12 steps) of 640, from .3 on: validation loss on CIFAR-10 1.368 and 1.392 for the 1.387 and
# 1.405 of an ema at .9 (seeds 1 and 2). The published (.072, 90) -> (.137, 24) of 3,100 steps lost there, at 1.441.
# A sweep at two lengths is to confirm them as shares.
DUAL_OPTIONS = {"kernel_before": "ema", "kernel_start": (0.1, 30 / 640), "kernel_end": (0.14, 12 / 640), "switch": 0.3}

# K = 8 averages of 3 to 64 steps and weights of the oldest from .857 to .097 are the field's, for 3,100 steps. Here the
# oldest has half of that, since the dual kernel wanted a shorter memory at 640 steps too. Not measured yet.
MIX_OPTIONS = {"mix": 8, "mix_ages": (3 / 640, 32 / 640), "mix_weights": (0.857, 0.097), "switch": 0.3}

ESTIMATORS: dict[str, Estimator] = {
    "ema": Estimator(_ema, kernel=ema_kernel),
    "nesterov": Estimator(_nesterov, kernel=nesterov_kernel),
    "mvr1": _corrected(_mvr1, options=MVR1_OPTIONS, kernel=_uncorrected),
    "mvr2": _corrected(_mvr2, ESTIMATES, options=MVR2_OPTIONS, kernel=_nested),
    "mvr3": _corrected(_mvr3, ESTIMATES, options=MVR2_OPTIONS, kernel=_nested),
    "limuon": _corrected(_mvr1, options={**MVR1_OPTIONS, **CARRY_OPTIONS}, kernel=_uncorrected),
    "mars": _corrected(_mars, options={**MARS_OPTIONS, "reference": "copy"}, kernel=_uncorrected),
    "mars_approximate": Estimator(
        _mars_approximate, ("momentum", "last_gradient"), options=MARS_OPTIONS, kernel=_against_the_last
    ),
    "igt": Estimator(_ema, reference="transported", share="lookahead", options={"lookahead": 1.0}, kernel=ema_kernel),
    "averaged": Estimator(
        _ema, reference="averaged", share="lookahead", options=AVERAGED_OPTIONS, length=True, kernel=ema_kernel
    ),
    "anchored": Estimator(
        _ema, reference="anchored", share="lookahead", options=ANCHORED_OPTIONS, length=True, kernel=ema_kernel
    ),
    "dual_ema": Estimator(_dual_ema, options={"momentum_carry": 0.99}, kernel=carried_kernel),
    "dual": Estimator(dual, options=DUAL_OPTIONS, schedule=dual_at, length=True, kernel=dual_kernel),
    "mix": Estimator(mix, AVERAGES, options=MIX_OPTIONS, schedule=mix_at, length=True, count="mix", kernel=mix_kernel),
    "ef21": Estimator(_ef21, COMPRESSED, options=EF21_OPTIONS, messages=MESSAGES),
    "ef21_mvr": Estimator(
        _ef21_mvr,
        COMPRESSED,
        "previous",
        "gamma",
        options={**EF21_OPTIONS, "gamma": 1.0, "reference": "copy"},
        messages=MESSAGES,
    ),
    "ef21_sarah": Estimator(_ef21_sarah, COMPRESSED, "previous", options=SARAH_OPTIONS, messages=MESSAGES),
    "adamw": Estimator(
        _none,
        ("exp_avg", "exp_avg_sq"),
        options={"betas": (0.9, 0.999), "eps": 1e-8},
        step_=adamw_,
        layout=adamw_layout,
    ),
}


def register_estimator(name: str, estimator: Estimator) -> None:
    """Add an estimator from outside the package, for methods and groups: `M <- update(M, c_new, c_old)`.

    Shapes: it gets lists of tensors, each of its parameter's shape.

    Args:
        name: Its name.
        estimator: The row; options that it reads and nobody else does are registered before by
            `lightning_gluon.register_option`.

    Raises:
        TypeError: If it is no `Estimator`.
        ValueError: If the name is taken, or an option is unknown.

    References:
        A. Cutkosky and F. Orabona, "Momentum-Based Variance Reduction in Non-Convex SGD", arXiv 1905.10018.

    Example:
        >>> register_estimator("last", Estimator(lambda buffers, new, old, options: new, buffers=()))
        >>> ESTIMATORS.pop("last").gradients({})
        1
    """
    if not isinstance(estimator, Estimator):
        raise TypeError(f"Expected `estimator` to be an `Estimator`, but got {type(estimator).__name__}.")
    check_registered(f"Estimator {name!r}", estimator.options)
    add_row(ESTIMATORS, "estimator", name, estimator)
