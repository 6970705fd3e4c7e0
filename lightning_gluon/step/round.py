"""One step over all chunks: the order in which they move, and the buffers kept between steps."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.messages import ALONE, Exchange
from lightning_gluon.norms.numerics import Workspace
from lightning_gluon.options import Group
from lightning_gluon.step.advance import Job, advance_, advance_all_, partners_of, prepare
from lightning_gluon.step.finite import GradientCheck
from lightning_gluon.step.noise import NoiseGuard
from lightning_gluon.step.plan import Chunk, build_plan
from lightning_gluon.two_point.reference import ReferencePoint

# Plans kept, one for every set of parameters with a gradient, the oldest forgotten first: where experts are idle by
# chance, every step has its own set.
PLANS = 16


@dataclass
class Plan:
    """Chunks of the parameters that have a gradient, and the facts known of them before a step."""

    chunks: list[Chunk]
    check: GradientCheck
    guard: NoiseGuard

    @property
    def params(self) -> list[Tensor]:
        """The parameters, in the order of all lists of a step."""
        return [parameter for chunk in self.chunks for parameter in chunk.params]

    @property
    def gradients(self) -> list[Tensor]:
        """Their gradients."""
        return [gradient for chunk in self.chunks for gradient in chunk.gradients]


@dataclass
class Plans:
    """The plans of an optimizer, built when they are first needed."""

    kept: dict[tuple[bool, ...], Plan | None] = field(default_factory=dict)

    def find(self, groups: list[Group]) -> Plan | None:
        """Return the plan for the parameters that have a gradient now; `None` if none has."""
        present = tuple(parameter.grad is not None for group in groups for parameter in group["params"])
        if present not in self.kept:
            if len(self.kept) == PLANS:
                del self.kept[next(iter(self.kept))]
            chunks = build_plan(groups)
            self.kept[present] = Plan(chunks, GradientCheck(chunks), NoiseGuard(chunks)) if chunks else None
        return self.kept[present]


class Round:
    """The update of one step: chunk by chunk, so that one chunk's intermediates are held; compiled, all in one graph.

    Args:
        compile: Whether `torch.compile` makes one graph of the step; a string is its mode.
    """

    def __init__(self, compile: bool | str = False) -> None:
        self.compile = compile
        self.workspace = Workspace()

    def update_(
        self,
        plan: Plan,
        state: MutableMapping[Tensor, Any],
        reference: ReferencePoint,
        gradients: list[Tensor],
        references: list[Tensor],
        signal: list[Tensor | None] | None,
        exchange: Exchange = ALONE,
    ) -> None:
        """Move all parameters of a plan.

        Args:
            plan: The plan.
            state: The optimizer's state, by parameter.
            reference: Records where parameters come from.
            gradients: Their gradients, in the plan's order.
            references: Those at the previous iterate; empty on a step that takes none.
            signal: 0 if a gradient is rounding noise, 1 elsewhere; `None` for a parameter that is not judged.
            exchange: Exchange with other workers.
        """
        jobs: list[Job] = []
        partners = partners_of(plan.chunks)
        with full_precision(plan.params), ExitStack() as tracked:
            start = 0
            for chunk in plan.chunks:
                part = slice(start, start + len(chunk.indices))
                start = part.stop
                old = references[part] if references else None
                heard = signal[part] if signal is not None else None
                tracked.enter_context(reference.tracking(chunk.group, chunk.params))
                job = prepare(state, chunk, gradients[part], old, heard, partners, exchange)
                if self.compile:
                    jobs += [job] if job is not None else []
                    continue
                self._advance_(job)
                tracked.close()
            self._advance_all_(jobs)
        reference.stay(set(plan.params))
        if reference.point is not None:  # the peak is in the second backward pass: keep nothing there to reuse
            self.workspace = Workspace()

    def _advance_(self, job: Job | None) -> None:
        if job is not None:
            advance_(*job.arguments(), workspace=self.workspace)
            job.finish()

    def _advance_all_(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        for job in jobs:
            job.to_tensors()
        self._compiled([job.arguments() for job in jobs])
        for job in jobs:
            job.finish()

    @cached_property
    def _compiled(self) -> Any:
        mode = self.compile if isinstance(self.compile, str) else None
        return torch.compile(advance_all_, dynamic=False, mode=mode)


def full_precision(params: Iterable[Tensor]) -> ExitStack:
    """Return a context in which products keep their dtype, also where the step is taken under autocast."""
    context = ExitStack()
    for kind in {parameter.device.type for parameter in params} - {"meta"}:
        if torch.is_autocast_enabled(kind):
            context.enter_context(torch.autocast(kind, enabled=False))
    return context
