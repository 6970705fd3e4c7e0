"""The optimizer as torch knows it: groups of (norm, estimator, radius), a step, and a state.

X <- (1 - lr * weight_decay) X - lr * radius * D(M)          D(M) = argmax_{||D|| <= 1} <M, D>
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Unpack

from lightning_gluon.estimators.gamma import NO_CALLBACK, estimated_gamma, is_estimated, observe_
from lightning_gluon.estimators.kernels import Kernel
from lightning_gluon.estimators.messages import ALONE, Exchange
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import DEFAULT_METHOD
from lightning_gluon.options import CHECKS, Group, Options
from lightning_gluon.ranks.groups import Ranks
from lightning_gluon.step.checks import (
    check_lengths,
    check_options,
    check_ranks_fit,
    check_values,
    find_method,
    values_of,
)
from lightning_gluon.step.conditions import check_star_convex
from lightning_gluon.step.late import Construction, follow_family, late_groups, name_apart
from lightning_gluon.step.layers import Layer
from lightning_gluon.step.load import match_saved_state
from lightning_gluon.step.round import Plan, Plans, Round
from lightning_gluon.step.sharing import Sharing, check_sharing
from lightning_gluon.step.sources import read_source
from lightning_gluon.step.state import ParameterState, State, memory
from lightning_gluon.step.workers import agreed_norms, agreed_signal, agreed_skip, check_exchange, check_messages
from lightning_gluon.two_point.closures import CLOSURE, LOOP, NOBODY, Closure, evaluate, old_gradients
from lightning_gluon.two_point.parts import PartReadings
from lightning_gluon.two_point.reference import ReferencePoint, Visit
from lightning_gluon.two_point.signals import held

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Gluon"]


class Gluon(Optimizer):
    """Optimizer over linear minimization oracles: Gluon, its variance-reduced variants, LiMuon, Muon, Scion, AdamW.

        M <- estimator(M, gradients)                                    row `estimator` of the group
        D <- argmax_{||D|| <= 1} <M, D>                                 row `norm` of the group
        X <- (1 - lr * weight_decay) X - lr * radius * D

    `t = lr * radius` is the length of a step in the layer's own norm. With `weight_decay > 0` the weights stay in the
    ball of radius `radius / weight_decay`: the constrained form (Scion).

    Shapes: any. A norm of matrices reads a parameter as the matrices `(out, in)` it holds, others read one vector.

    Args:
        params: An `nn.Module` or a `Partition` (routed by what each layer is), the module's own `parameters()` or
            `named_parameters()` (the same), or groups: dicts with `params`, a `role`, and any option. Parameters
            without module and role are routed by shape alone: matrices hidden, vectors bias.
        lr: Hidden radius, in the layer's own norm; schedules act on it.
        method: A row of `lightning_gluon.METHODS`; it gives each role its norm, estimator and relative radius.
        weight_decay: Decoupled decay in units of 1 / lr, one value or one per role; default: the method's.
        radius: Radii relative to the hidden one, by role, instead of the method's.
        momentum: Weight on the OLD momentum, in [0, 1); default: the method's.
        decay: How weights decay, outside of AdamW's groups: `plain`; `cautious`, only where the step makes an entry
            smaller; or `follows_lr`, times `lr / initial_lr` of a schedule. Default: `plain`.
        total_steps: Optimizer steps of the whole training, for methods whose memory is a share of it.
        process_group: Ranks that hold the same weights and the same gradients (DDP); `configure_optimizers` finds them.
            Weights that are `DTensor`s know their ranks themselves.
        share_work: Whether these ranks share the LMOs. `auto` times both ways in the first steps.
        **options: Options of the method, see `lightning_gluon.options.Options`. `compile` lets `torch.compile` make one
            graph of the step: the first one takes up to a minute. Learning rates and radii may change afterwards,
            momenta may not.

    Raises:
        ValueError: If an option is unknown or out of range, or a parameter does not fit its group's norm.
        TypeError: If a parameter is not real floating-point.
        NotImplementedError: If parameters are sharded over ranks by other means than `DTensor`s.

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
        >>> [layer.name for layer in optimizer.layers()][:2], optimizer.memory()["by_kind"]["momentum"]
        (['0.weight', '2.weight'], 232)
        >>> optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))], "role": "bias"})
        >>> optimizer.param_groups[-1]["norm"]
        'rms'
    """

    def __init__(
        self,
        params: Any,
        lr: float | None = 0.02,
        *,
        method: str = DEFAULT_METHOD,
        weight_decay: float | Mapping[str, float] | None = None,
        radius: Mapping[str, float] | None = None,
        momentum: float | None = None,
        decay: str | None = None,
        total_steps: int | None = None,
        process_group: ProcessGroup | None = None,
        share_work: bool | str = "auto",
        **options: Unpack[Options],
    ) -> None:
        self.compile: bool | str = CHECKS["compile"]("compile", options.pop("compile", None)) or False
        self.process_group, self.share_work = process_group, check_sharing(share_work, self.compile)
        check_options(method, options)
        given = dict(options) if decay is None else {**options, "decay": decay}
        partial_groups, self._partition = read_source(params)
        self._settings = Construction(method, lr, weight_decay, momentum, radius, given, total_steps)
        groups = self._settings.build(partial_groups)
        check_lengths(groups, method)
        check_messages(groups, self.compile)
        check_ranks_fit(groups, find_method(method))
        name_apart(groups)  # before any is added
        self.reference_gradients: dict[Tensor, Tensor] = {}
        self.exchange: Exchange = ALONE  # with other workers, for estimators that send messages
        self.two_point = CLOSURE  # who takes the second gradient, see `two_point.closures`
        self._transient()
        key = "betas" if all("betas" in group for group in groups) else "momentum"
        super().__init__(groups, {"lr": lr, key: groups[0][key]})  # where `OneCycleLR`, `LearningRateMonitor` look
        if method == "muon-mvr":
            check_star_convex(self.layers())

    def _transient(self) -> None:
        """Create the parts that are not saved: plans, buffers to reuse, numbers that were checked."""
        self._plans = self._new_plans()
        self._round = Round(self.compile)
        self._visit = Visit()
        self.readings: PartReadings | None = None  # of the coming step's parts, from whoever sees them
        self._checked: list[list[object]] = []

    def _new_plans(self) -> Plans:
        return Plans(Sharing(Ranks.of(self.process_group), self.share_work))

    def __setstate__(self, state: ParameterState) -> None:
        """Restore from a pickle or a loaded state."""
        super().__setstate__(state)
        self.__dict__.setdefault("reference_gradients", {})
        self.__dict__.setdefault("two_point", CLOSURE)
        self.__dict__.setdefault("compile", False)
        self.__dict__.setdefault("process_group", None)  # no pickle holds it
        self.__dict__.setdefault("share_work", "auto")
        self.__dict__.setdefault("exchange", ALONE)
        self._transient()

    def __getstate__(self) -> ParameterState:
        """Return the content of a pickle: no plans, no buffers."""
        kept = {key: getattr(self, key) for key in ("_settings", "two_point", "compile")}
        return {**super().__getstate__(), **kept, "_partition": None}

    # ------------------------------------------------------------------ groups

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, completing the group from the method; without names, group and parameters get unique ones.

        Without a `role` it becomes one group per role. Those follow each other's learning rate, as the one group would.

        Args:
            param_group: A dict with `params` and any option of a group.

        Raises:
            ValueError: If a parameter is already in a group, or a value does not fit.
        """
        if isinstance(param_group, Mapping) and "gradient_evaluations" in param_group:  # complete
            groups = [param_group]
            name_apart(groups, self.param_groups)
        else:
            groups = late_groups(param_group, self._settings, self._partition, self.param_groups)
        for group in groups:
            super().add_param_group(group)
        self._plans = self._new_plans()

    def layers(self) -> list[Layer]:
        """Return every parameter with its role, norm, views and radius, for monitors and schedulers."""
        return [Layer(group, index) for group in self.param_groups for index in range(len(group["params"]))]

    # ------------------------------------------------------------------ two points

    @property
    def _reference(self) -> ReferencePoint:
        points = [ESTIMATORS[group["estimator"]].point(group) for group in self.param_groups]
        return ReferencePoint(self.param_groups, self.state, points, self._visit)

    @property
    def reference_point(self) -> str | None:
        """The place of a further gradient: `None`, `"previous"`, or one of `lightning_gluon.two_point.transport`."""
        return self._reference.point

    @property
    def needs_reference(self) -> bool:
        """True if the next step needs gradients at the reference point: from the second step on."""
        return self._reference.needed

    @property
    def away(self) -> bool:
        """True while the weights are at the reference point."""
        return self._visit.away

    @property
    def keeps_previous(self) -> bool:
        """True if the state holds a copy of every weight's previous value."""
        return self._reference.exact

    @property
    def gradient_evaluations(self) -> int:
        """Gradients evaluated so far: one per step, two if the method takes a second one."""
        return max((group["gradient_evaluations"] for group in self.param_groups), default=0)

    def at_reference(self) -> AbstractContextManager[None]:
        """Exchange all weights with the reference point, in place, and restore them bit for bit on leaving.

        A training loop that takes the second gradient here itself sets `two_point = "loop"` before its first step.

        Returns:
            A context: inside, the weights are `X_prev`, or `Y = X + b / (1 - b) (X - X_prev)` for `igt`.

        Example:
            >>> layer = torch.nn.Linear(1, 1, bias=False)
            >>> optimizer = Gluon(layer, lr=0.5, method="gluon-mvr1")
            >>> start = layer.weight.detach().clone()
            >>> def closure():
            ...     optimizer.zero_grad()
            ...     loss = layer(torch.ones(1, 1)).sum()
            ...     loss.backward()
            ...     return loss
            >>> loss = optimizer.step(closure)
            >>> with optimizer.at_reference():
            ...     torch.equal(layer.weight, start)
            True
        """
        return self._reference.exchanged()

    def kernel(self) -> dict[str, Kernel]:
        """Return how the coming step weighs past gradients, by group: the newest one's weight and the mean age.

        Groups whose estimator is not linear in past gradients at the weights are left out: AdamW, clipped ones, and
        those that are corrected by a second gradient.

        Example:
            >>> optimizer = Gluon(torch.nn.Linear(3, 5), lr=0.1, momentum=0.75, method="gluon-nesterov")
            >>> optimizer.kernel()["bias"]
            Kernel(newest=0.4375, age=2.25)
        """
        found = {}
        for group in self.param_groups:
            kernel = ESTIMATORS[group["estimator"]].kernel
            known = kernel(group) if kernel is not None else None
            if known is not None:
                found[group["name"]] = known
        return found

    @property
    def estimated_groups(self) -> list[Group]:
        """The groups with `gamma="auto"`, see `lightning_gluon.estimators.gamma`."""
        return [group for group in self.param_groups if is_estimated(group)]

    @property
    def gammas(self) -> dict[str, float]:
        """The present estimates of gamma, by group."""
        found = {}
        for group in self.estimated_groups:
            estimate = estimated_gamma(group)
            if estimate is not None:
                found[group["name"]] = estimate
        return found

    @property
    def folds(self) -> bool:
        """True if the second gradient is folded into the first one's buffer (option `fold`)."""
        return any(group.get("fold") and group.get("gamma", 1) for group in self.param_groups)

    @property
    def folded(self) -> bool:
        """True if the gradients of the coming step are folded already."""
        return self._visit.folded

    @folded.setter
    def folded(self, value: bool) -> None:
        self._visit.folded = value

    def folding(self) -> AbstractContextManager[None]:
        """Let gradients accumulated inside enter `.grad` as `-b c_old`; the next step takes `.grad` as folded.

        Returns:
            A context for the backward pass of the second gradient, inside `at_reference`.

        Example:
            >>> layer = torch.nn.Linear(1, 1, bias=False)
            >>> optimizer = Gluon(layer, lr=0.5, method="gluon-mvr1", momentum=0.9, fold=True)
            >>> optimizer.two_point = "loop"
            >>> layer.weight.grad = torch.ones(1, 1)
            >>> optimizer.step()
            >>> with optimizer.at_reference(), optimizer.folding():
            ...     layer(torch.ones(1, 1)).sum().backward()
            >>> round(layer.weight.grad.item(), 6)
            0.1
        """
        return self._reference.folding()

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step.

        Args:
            closure: Re-evaluates the model and returns the loss; called once, or twice (with the random state restored)
                when the method takes a second gradient and no callback supplies it.

        Returns:
            What the closure returned, or `None`.

        Raises:
            FloatingPointError: If a gradient is not finite and `on_nonfinite` is `"raise"`; nothing has changed then.
            RuntimeError: If a gradient is sparse, or the second gradient (of `igt`: the one at its point) is missing.
                If the `exchange` has another number of workers than the groups say.
            ValueError: If a number of a group was changed to one that is out of range, or `gamma="auto"` has no
                parts to compare; nothing has changed then.
        """
        self._check_values()
        if self.two_point in (CLOSURE, LOOP) and self.estimated_groups:
            raise ValueError(NO_CALLBACK)
        check_exchange(self.param_groups, self.exchange)
        reference = self._reference
        loss, taken = evaluate(closure, reference, self.two_point)
        self.reference_gradients = taken or self.reference_gradients
        plan = self._plans.find(self.param_groups)
        if plan is not None:
            self._step(plan, reference)
        return loss

    def _step(self, plan: Plan, reference: ReferencePoint) -> None:
        gradients, references = plan.gradients, []
        if reference.needed and not reference.transported and self.two_point != NOBODY:  # else c_old = c_new
            references = old_gradients(plan.params, gradients, reference, self.reference_gradients)
        folded, self.folded = self.folded, False
        self.reference_gradients = {}
        points = (gradients, [] if folded else references, plan.guard.judged)
        norms = agreed_norms(self.exchange, partial(plan.check.norms, *points))
        readings, self.readings = self.readings, None
        if agreed_skip(self.param_groups, self.exchange, norms is None) or norms is None:
            return
        if references:
            self._observe(readings)
        signal = agreed_signal(self.exchange, plan.guard.signal(gradients, norms))
        # Ctrl-C waits: half a step would leave torn weights.
        with held(), self._plans.sharing.timed(gradients[0].device):
            self._round.update_(plan, self.state, reference, gradients, references, signal, self.exchange)
            for group in self.param_groups:
                group["steps"] += 1
                group["gradient_evaluations"] += 2 if references else 1

    def _observe(self, readings: PartReadings | None) -> None:
        """Bring the estimates of gamma up to date, after the wait of the check: nothing has moved yet."""
        groups = self.estimated_groups
        found = readings.read() if groups and readings is not None else {}
        for group in groups:
            reading = found.get(group["name"])
            observe_(group, reading and reading.difference)

    def _check_values(self) -> None:
        """Raise if a value was changed to one out of range since the last step."""
        follow_family(self.param_groups)
        if [values_of(group) for group in self.param_groups] != self._checked:
            for group in self.param_groups:
                check_values(group)
            self._checked = [values_of(group) for group in self.param_groups]

    # ------------------------------------------------------------------ state

    def state_dict(self) -> ParameterState:
        """Return state and groups as plain values and tensors, parameters by their index.

        Shapes: buffers have the shapes of their parameters, low-rank factors those of their matrices.

        Example:
            >>> sorted(Gluon(torch.nn.Linear(2, 2), lr=0.1).state_dict())
            ['param_groups', 'state']
        """
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.pop("partners", None)  # which are parameters, and the model's to save
        return saved

    def load_state_dict(self, state_dict: ParameterState) -> None:
        """Load a state, matching parameters by name and keeping every buffer's dtype, AdamW's moments apart.

        Args:
            state_dict: Result of `state_dict()`.

        Raises:
            ValueError: If names, groups, values or buffers do not match; nothing has changed then.
        """
        state: State = {}
        partners = [group.get("partners") for group in self.param_groups]

        def match(_: Optimizer, saved: ParameterState) -> ParameterState:
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
        for group, own in zip(self.param_groups, partners, strict=True):
            if own is not None:
                group["partners"] = own

    def memory(self) -> ParameterState:
        """Return the bytes the optimizer keeps, by role and by kind; see `lightning_gluon.step.state.memory`."""
        kind, workspace = self._reference.kind, self._round.workspace.nbytes()
        return memory(self.param_groups, self.state, reference=kind, workspace_bytes=workspace)
