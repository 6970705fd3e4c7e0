"""The one optimizer: parameter groups x (norm, estimator, radius); `update.py` holds its arithmetic.

X <- (1 - lr * weight_decay) X - lr * radius * D(M)          D(M) = argmax_{||D|| <= 1} <M, D>
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms.numerics import Workspace
from lightning_gluon.partition import Partition, partition
from lightning_gluon.step.advance import advance_, advance_all_, prepare
from lightning_gluon.step.conditions import check_star_convex
from lightning_gluon.step.groups import as_list, build_groups, check_options, check_ranks_fit, groups_of_routes
from lightning_gluon.step.layers import Layer
from lightning_gluon.step.noise import GradientCheck
from lightning_gluon.step.plan import Chunk, build_plan
from lightning_gluon.step.state import match_saved_state, memory
from lightning_gluon.two_point.exchange import exchanged_gradients
from lightning_gluon.two_point.reference import ReferencePoint
from lightning_gluon.two_point.signals import held
from lightning_gluon.two_point.streams import rng_state, set_rng_state

__all__ = ["Gluon"]

# Plans kept, one for every set of parameters with a gradient, the oldest forgotten first: where experts are idle by
# chance, every step has a set of its own.
PLANS = 16


@dataclass(frozen=True)
class _Given:
    """What the optimizer was built with, for groups that are added later."""

    method: str
    lr: float | None
    weight_decay: float | Mapping[str, float] | None
    momentum: float | None
    radius: Mapping[str, float]
    options: Mapping[str, Any]


class Gluon(Optimizer):
    """Optimizer over linear minimization oracles: Gluon, its variance-reduced variants, LiMuon, Muon, Scion, AdamW.

        M <- estimator(M, gradients)                                    row `estimator` of the group
        D <- argmax_{||D|| <= 1} <M, D>                                 row `norm` of the group
        X <- (1 - lr * weight_decay) X - lr * radius * D

    `t = lr * radius` is the length of a step in the layer's own norm. With `weight_decay > 0` the weights stay in the
    ball of radius `radius / weight_decay`: the constrained form (Scion).

    Args:
        params: An `nn.Module` or a `Partition` (routed by what each layer is), `named_parameters()` or parameters
            (routed by shape alone: matrices hidden, vectors bias), or groups: dicts with `params`, a `role` (without
            one they are routed by shape), and any option.
        lr: Hidden radius, in the layer's own norm; schedules act on it.
        method: A row of `lightning_gluon.METHODS`; it gives each role its norm, estimator and relative radius.
        weight_decay: Decoupled decay in units of 1 / lr, one value or one per role; default: the method's.
        radius: Radii relative to the hidden one, by role, instead of the method's.
        momentum: Weight on the OLD momentum, in [0, 1); default: the method's.
        compile: Let `torch.compile` make one graph of the step (a string: its mode; `reduce-overhead` also captures a
            CUDA graph): the first step takes up to a minute, later ones launch fewer kernels. Learning rates and radii
            may change, momenta may not.
        **options: `orthogonalizer` (`polar_express`, `you`, `jordan` or `newton_schulz`, `svd`) with its steps and
            dtype as `orthogonalizer_steps` and `orthogonalizer_dtype`, `momentum_dtype`, `on_nonfinite` (`raise`,
            `skip`, `ignore`), `noise_floor`, `start`, `scaling`, and those of the method's estimators, which
            `lightning-gluon methods NAME` prints and `lightning_gluon.callbacks.GluonOptimizer` explains: `rank`,
            `reference`, `fold`, `q`, `gamma`, `clip`, `betas`...

    Raises:
        ValueError: If an option is unknown or out of range, or a parameter does not fit its group's norm.
        TypeError: If a parameter is not real floating-point.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.
        "Gluon-MVR", arXiv 2512.16598. "LiMuon", arXiv 2509.14562. T. Pethick et al., "Scion", arXiv 2502.07529.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = Gluon(model, lr=0.02)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.gradient_evaluations
        1
    """

    def __init__(
        self,
        params: Any,
        lr: float | None = 0.02,
        *,
        method: str = "gluon",
        weight_decay: float | Mapping[str, float] | None = None,
        radius: Mapping[str, float] | None = None,
        momentum: float | None = None,
        compile: bool | str = False,
        **options: Any,
    ) -> None:
        if not isinstance(compile, (bool, str)):
            raise ValueError(f"Expected `compile` to be a bool or a mode of torch.compile, but got {compile!r}.")
        self.compile = compile
        check_options(method, options)
        if isinstance(params, nn.Module):
            params = partition(params)
        groups = build_groups(
            params, method=method, lr=lr, weight_decay=weight_decay, radius=radius, momentum=momentum, options=options
        )
        check_ranks_fit(groups)
        self._partition = params if isinstance(params, Partition) else None
        self._defaults_for_groups = _Given(
            method=method,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            radius=dict(radius or {}),
            options=dict(options),
        )
        self.reference_gradients: dict[Tensor, Tensor] = {}
        self.two_point = "closure"  # who takes the second gradient: step(closure) itself, a "callback", or "none"
        self._transient()
        key = "betas" if all("betas" in group for group in groups) else "momentum"
        super().__init__(groups, {"lr": lr, key: groups[0][key]})  # where `OneCycleLR`, `LearningRateMonitor` look
        if method == "muon-mvr":
            check_star_convex(self.layers())

    def _transient(self) -> None:
        """Create what is not saved: plans, buffers to reuse, the view of the reference point."""
        self._plans: dict[tuple, tuple[list[Chunk], GradientCheck] | None] = {}
        self._workspace = Workspace()
        self._reference = ReferencePoint(self)
        self.folded = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or a loaded state."""
        super().__setstate__(state)
        self.__dict__.setdefault("reference_gradients", {})
        self.__dict__.setdefault("two_point", "closure")
        self.__dict__.setdefault("compile", False)
        self._transient()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: no plans, no buffers."""
        return {
            **super().__getstate__(),
            "_partition": None,
            "_defaults_for_groups": self._defaults_for_groups,
            "two_point": self.two_point,
            "compile": self.compile,
        }

    # ------------------------------------------------------------------ groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, completing the group from the method; without names, group and parameters get unique ones.

        Args:
            param_group: A dict with `params` and any option of a group.

        Raises:
            ValueError: If a parameter is already in a group, or a value does not fit.
        """
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            found = list(param_group) if isinstance(param_group, Mapping) else type(param_group).__name__
            raise ValueError(f"Expected `param_group` to be a dict with `params`, but got {found}.")
        for group in self._complete(dict(param_group)):
            taken = {other["name"] for other in self.param_groups}
            base, count = group["name"], 2
            while group["name"] in taken:
                group["name"], count = f"{base}_{count}", count + 1
            self._check_new(group)
            names = {name for other in self.param_groups for name in other["param_names"]}
            group["param_names"] = [
                f"{name}_{group['name']}" if name in names else name for name in group["param_names"]
            ]
            super().add_param_group(group)
        self._plans = {}

    def _complete(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        if "steps" in group:  # built by build_groups
            return [group]
        defaults = self._defaults_for_groups
        group["params"] = as_list(group["params"])
        routed = [] if "role" in group else self._route(group["params"])
        groups = build_groups(
            [{**group, **part} for part in routed] or [group],
            method=defaults.method,
            lr=defaults.lr,
            weight_decay=defaults.weight_decay,
            momentum=defaults.momentum,
            radius=None,
            options=defaults.options,
        )
        for new in groups:
            if "radius" not in group:
                new["radius"] = defaults.radius.get(new["role"], new["radius"])
            new["steps"] = max((other["steps"] for other in self.param_groups), default=0)
        return groups

    def _route(self, params: list) -> list[dict[str, Any]]:
        """Return groups of late parameters as the partition routed them, or none where it does not know them all."""
        pairs = []
        for item in params:
            tensor = item[1] if isinstance(item, tuple) else item
            route = self._partition.find(tensor) if self._partition is not None else None
            if route is None:
                return []
            pairs.append((route, tensor))
        return groups_of_routes(pairs)

    def _check_new(self, group: dict[str, Any]) -> None:
        seen = {id(parameter) for other in self.param_groups for parameter in other["params"]}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if id(parameter) in seen:
                raise ValueError(f"{name!r} is given twice: a parameter belongs to exactly one group.")
            seen.add(id(parameter))

    def layers(self) -> list[Layer]:
        """Return every parameter with its role, norm, views and radius, for monitors and schedulers."""
        return [Layer(group, index) for group in self.param_groups for index in range(len(group["params"]))]

    # ------------------------------------------------------------------ two points

    @property
    def reference_point(self) -> str | None:
        """Where a further gradient is needed: `None`, `"previous"` or `"transported"`."""
        points = {ESTIMATORS[group["estimator"]].reference for group in self.param_groups} - {None}
        if len(points) > 1:
            raise ValueError("Estimators that need gradients at different points cannot be mixed in one optimizer.")
        return points.pop() if points else None

    @property
    def needs_reference(self) -> bool:
        """True when the next step needs gradients at the reference point: from the second step on."""
        return self.reference_point is not None and any(group["steps"] > 0 for group in self.param_groups)

    @property
    def gradient_evaluations(self) -> int:
        """Gradients evaluated so far: one per step, two where the method takes a second one."""
        return max((group["gradient_evaluations"] for group in self.param_groups), default=0)

    def at_reference(self) -> AbstractContextManager[None]:
        """Exchange all weights with the reference point, in place, and restore them bit for bit on leaving."""
        return self._reference.exchanged()

    @property
    def folds(self) -> bool:
        """True when the second gradient is folded into the first one's buffer (option `fold`)."""
        return any(group.get("fold") for group in self.param_groups)

    def folding(self) -> AbstractContextManager[None]:
        """Let gradients accumulated inside enter `.grad` as `-b c_old`; the next step takes `.grad` as folded."""
        return self._reference.folding()

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Re-evaluates the model and returns the loss; called once, or twice (with the random state restored)
                when the method takes a second gradient and no callback supplies it.

        Returns:
            What the closure returned, or `None`.

        Raises:
            FloatingPointError: If a gradient is not finite and `on_nonfinite` is `"raise"`; nothing has changed then.
            RuntimeError: If a gradient is sparse, or the second gradient (of `igt`: the one at its point) is missing.
        """
        loss = self._evaluate(closure)
        plan = self._plan()
        if plan is None:
            return loss
        chunks, check = plan
        gradients = [gradient for chunk in chunks for gradient in chunk.gradients]
        references = self._reference_list(chunks)
        self.reference_gradients, folded, self.folded = {}, self.folded, False
        norms = check.norms(gradients, [] if folded else references)
        if norms is None:
            return loss
        with held(), _full_precision(chunks):  # Ctrl-C waits: half a step would leave torn weights
            self._update(chunks, gradients, references, check.signal(norms))
            self._reference.stay({parameter for chunk in chunks for parameter in chunk.params})
            self._count(chunks, bool(references))
        if self.reference_point is not None:  # the peak is in the second backward pass: keep nothing there to reuse
            self._workspace = Workspace()
        return loss

    def _update(
        self, chunks: list[Chunk], gradients: list[Tensor], references: list[Tensor], signal: list[Tensor] | None
    ) -> None:
        """Move chunk by chunk, so that one chunk's intermediates are held; compiled, all in one graph."""
        start, jobs = 0, []
        with ExitStack() as tracked:
            for chunk in chunks:
                part = slice(start, start + len(chunk.indices))
                start = part.stop
                old, heard = references[part] if references else None, signal[part] if signal is not None else None
                tracked.enter_context(self._reference.tracking(chunk.params))
                job = prepare(self.state, chunk, gradients[part], old, heard)
                if job is not None and self.compile:
                    jobs.append(job)
                    continue
                if job is not None:
                    advance_(*job.arguments(compiled=False), workspace=self._workspace)
                    job.finish()
                if not self.compile:
                    tracked.close()
            if jobs:
                self._advance_all([job.arguments(compiled=True) for job in jobs])
            for job in jobs:
                job.finish()

    @cached_property
    def _advance_all(self) -> Callable[..., None]:
        mode = self.compile if isinstance(self.compile, str) else None
        return torch.compile(advance_all_, dynamic=False, mode=mode)

    def _plan(self) -> tuple[list[Chunk], GradientCheck] | None:
        """Return the plan for the parameters that have a gradient now; `None` where none has."""
        present = tuple(parameter.grad is not None for group in self.param_groups for parameter in group["params"])
        if present not in self._plans:
            if len(self._plans) == PLANS:
                del self._plans[next(iter(self._plans))]
            chunks = build_plan(self.param_groups)
            self._plans[present] = (chunks, GradientCheck(chunks)) if chunks else None
        return self._plans[present]

    def _count(self, chunks: list[Chunk], two: bool) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            group["gradient_evaluations"] += 2 if two else 1

    def _evaluate(self, closure: Callable[[], Any] | None) -> Any:
        """Run the closure, a second time at the previous iterate where nobody else does."""
        if closure is None:
            moved, self._reference.used = self._reference.used, False
            missed = not moved and self.two_point == "closure" and self.needs_reference
            if missed and self.reference_point == "transported":
                raise RuntimeError(
                    "The gradients were taken at the weights, not at the transported point: call `step(closure)`, or "
                    "run forward and backward under `with optimizer.at_reference():`, or add "
                    "`lightning_gluon.callbacks.VarianceReduction()` to the Trainer's callbacks."
                )
            return None
        again = closure
        if self.reference_point is not None and self.two_point == "closure" and _is_lightning(closure):
            module, _, again = closure.args  # again: the closure itself, without the hooks around it
            if module.automatic_optimization:  # before the first step, which could still be taken
                raise RuntimeError(
                    "This method takes a second gradient, which the closure alone cannot give exactly under Lightning. "
                    "Add `lightning_gluon.callbacks.VarianceReduction()` to the Trainer's callbacks, or build the "
                    "optimizer with `lightning_gluon.configure_optimizers`, which attaches it."
                )
        if self.reference_point is None or self.two_point != "closure" or not self.needs_reference:
            with torch.enable_grad():
                return closure()
        if self.reference_point == "transported":
            with self.at_reference(), torch.enable_grad():
                return closure()
        return self._evaluate_twice(closure, again)

    def _evaluate_twice(self, closure: Callable[[], Any], again: Callable[[], Any]) -> Any:
        before = rng_state()
        with torch.enable_grad():
            loss = closure()
        after = rng_state()
        params = [parameter for group in self.param_groups for parameter in group["params"]]
        try:
            set_rng_state(before)
            with exchanged_gradients(params, {}) as taken, self.at_reference(), torch.enable_grad():
                again()
        finally:
            set_rng_state(after)
        self.reference_gradients = taken.gradients
        return loss

    def _reference_list(self, chunks: list[Chunk]) -> list[Tensor]:
        """Return c_old in the order of the plan; empty on a step that takes none."""
        if self.reference_point != "previous" or not self.needs_reference or self.two_point == "none":
            return []  # c_old = c_new: plain momentum
        if not self.reference_gradients and not self.folded:
            raise RuntimeError(
                "The gradients at the previous iterate are missing: call `step(closure)`, or add "
                "`lightning_gluon.callbacks.VarianceReduction()` to the Trainer's callbacks."
            )
        return [
            self._old_gradient(parameter, gradient)
            for chunk in chunks
            for parameter, gradient in zip(chunk.params, chunk.gradients, strict=True)
        ]

    def _old_gradient(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return c_old of one parameter; without a state it takes its first step, where c_old is c_new."""
        if parameter not in self.state:
            return gradient
        old = self.reference_gradients.get(parameter)  # none: folded, or not used at the previous iterate
        return gradient.new_zeros(()).expand_as(gradient) if old is None else old

    # ------------------------------------------------------------------ state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, matching parameters by name and keeping every buffer's dtype, AdamW's moments apart.

        Args:
            state_dict: What `state_dict()` returned.

        Raises:
            ValueError: If names, groups or shapes do not match; nothing has changed then.
        """
        state: dict[Tensor, dict[str, Any]] = {}

        def match(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            matched, moved = match_saved_state(self.param_groups, saved)
            state.update(moved)
            return {**saved, "state": {}, "param_groups": matched}

        # Between the hooks of users: theirs before loading see the saved state, theirs after it the loaded one.
        hooks = (
            self.register_load_state_dict_pre_hook(match),
            self.register_load_state_dict_post_hook(lambda _: self.state.update(state), prepend=True),
        )
        try:
            super().load_state_dict(dict(state_dict) if isinstance(state_dict, Mapping) else match(self, state_dict))
        finally:
            for hook in hooks:
                hook.remove()

    def memory(self) -> dict[str, Any]:
        """Return the bytes the optimizer keeps, by role and by kind; see `lightning_gluon.step.state.memory`."""
        return memory(self)


def _full_precision(chunks: list[Chunk]) -> ExitStack:
    """Return a context in which products keep their dtype, also where the step is taken under autocast."""
    context = ExitStack()
    for kind in {chunk.group["params"][chunk.indices[0]].device.type for chunk in chunks} - {"meta"}:
        if torch.is_autocast_enabled(kind):
            context.enter_context(torch.autocast(kind, enabled=False))
    return context


def _is_lightning(closure: Callable[[], Any]) -> TypeGuard[partial[Any]]:
    """Tell whether Lightning's automatic optimization built this closure: a partial of `Precision._wrap_closure`."""
    return isinstance(closure, partial) and getattr(closure.func, "__name__", "") == "_wrap_closure"
