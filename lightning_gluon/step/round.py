"""One step over all chunks: the order in which they move, and the buffers kept between steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.messages import ALONE, Exchange
from lightning_gluon.norms.needs import Partner
from lightning_gluon.norms.numerics import Workspace
from lightning_gluon.options import Group
from lightning_gluon.ranks.groups import ONE_RANK
from lightning_gluon.step.advance import Job, advance_, advance_all_, partners_of, prepare
from lightning_gluon.step.consensus import Consensus
from lightning_gluon.step.finite import GradientCheck
from lightning_gluon.step.noise import NoiseGuard
from lightning_gluon.step.plan import Chunk, build_plan
from lightning_gluon.step.sharing import Sharing
from lightning_gluon.step.trip import Loan, Trip
from lightning_gluon.step.world import TripChunks, World, world_plan
from lightning_gluon.two_point.reference import ReferencePoint

# Plans kept, one for every set of parameters with a gradient, the oldest forgotten first: where experts are idle by
# chance, every step has its own set.
PLANS = 16


@dataclass
class Plan:
    """Chunks of the parameters that have a gradient, and the facts known of them before a step.

    Args:
        chunks: Chunks that a rank steps by itself.
        trips: Chunks whose matrices travel together, on many ranks.
        check: What watches their gradients.
        guard: What judges their biases.
    """

    chunks: list[Chunk]
    trips: list[TripChunks]
    check: GradientCheck
    guard: NoiseGuard

    @classmethod
    def of(
        cls,
        chunks: list[Chunk],
        trips: list[TripChunks],
        consensus: Consensus | None,
    ) -> Plan | None:
        """Return the plan of chunks and trips; `None` if there are none."""
        every = list(_all_chunks(chunks, trips))
        if not every:
            return None
        return cls(chunks, trips, GradientCheck(every, consensus), NoiseGuard(every, consensus))

    @property
    def every(self) -> list[Chunk]:
        """Chunks of both kinds, in the order of all lists of a step."""
        return list(_all_chunks(self.chunks, self.trips))

    @property
    def params(self) -> list[Tensor]:
        """The parameters."""
        return [parameter for chunk in self.every for parameter in chunk.params]

    @property
    def gradients(self) -> list[Tensor]:
        """Their gradients."""
        return [gradient for chunk in self.every for gradient in chunk.gradients]


def _all_chunks(
    chunks: list[Chunk],
    trips: list[TripChunks],
) -> Iterator[Chunk]:
    yield from chunks
    for trip in trips:
        yield from trip


@dataclass
class Plans:
    """The plans of an optimizer, built when they are first needed.

    Args:
        sharing: Whether ranks that hold the same plain parameters share their LMOs.
    """

    sharing: Sharing = field(default_factory=partial(Sharing, ONE_RANK, False))
    kept: dict[tuple[bool, ...], Plan | None] = field(default_factory=dict)
    world: World | None = None
    consensus: Consensus | None = None
    known: bool = False

    def find(
        self,
        groups: list[Group],
    ) -> Plan | None:
        """Return the plan for the parameters that have a gradient now; `None` if none has.

        Args:
            groups: The optimizer's groups.

        Raises:
            RuntimeError: If other ranks have other groups.
        """
        if not self.known:
            self._meet(groups)
        together = self.world is not None and (self.world.sharded or self.sharing.now)
        present = (together, *(parameter.grad is not None for group in groups for parameter in group["params"]))
        if present not in self.kept:
            if len(self.kept) == PLANS:
                del self.kept[next(iter(self.kept))]
            self.kept[present] = self._together() if together else Plan.of(build_plan(groups), [], None)
        plan = self.kept[present]
        if together and plan is None and self.consensus is not None:
            self.consensus.check_none()
        return plan

    def _meet(
        self,
        groups: list[Group],
    ) -> None:
        """Find out whether there are other ranks, and whether they have the same parameters."""
        self.world = World.of(groups, self.sharing.ranks)
        if self.world is not None:
            self.consensus = Consensus(self.world)
            self.consensus.check()
        self.known = True

    def _together(self) -> Plan | None:
        """Return the plan of what the ranks do together."""
        assert self.world is not None
        chunks, trips = world_plan(self.world, share=self.sharing.now)
        return Plan.of(chunks, trips, self.consensus)


class Round:
    """The update of one step: chunk by chunk, so that one chunk's intermediates are held; compiled, all in one graph.

    Args:
        compile: Whether `torch.compile` makes one graph of the step; a string is its mode.
    """

    def __init__(
        self,
        compile: bool | str = False,
    ) -> None:
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

        Raises:
            NotImplementedError: If the step is compiled, and matrices travel; nothing has changed then.
        """
        if self.compile and plan.trips:
            raise NotImplementedError("`compile` does not work where weights are spread over ranks yet. Leave it out.")
        jobs: list[Job] = []
        partners = partners_of(plan.every)
        given = _StepInputs(state, reference, gradients, references, signal, partners, exchange)
        with full_precision(chunk.params[0] for chunk in plan.every), ExitStack() as tracked:
            for chunk in plan.chunks:
                job = given.begin(chunk, tracked)
                if self.compile:
                    jobs += [job] if job is not None else []
                    continue
                self._advance_(job)
                tracked.close()
            self._advance_all_(jobs)
            self._travel_(plan.trips, given)
        reference.stay(set(plan.params))
        if reference.point is not None:  # the peak is in the second backward pass: keep nothing there to reuse
            self.workspace = Workspace()

    def _travel_(
        self,
        trips: list[TripChunks],
        given: _StepInputs,
    ) -> None:
        """Take the trips: while one works at its owners, the next is on its way there, and the last one back."""
        begun = chain((self._begin(chunks, given) for chunks in trips), [None])
        flying: list[Trip] = []
        for trip, after in pairwise(begun):
            assert trip is not None
            trip.send(flying[-1] if flying else None, after)
            flying.append(trip)
            if len(flying) > 1:
                flying[-2].work()
            if len(flying) > 2:
                flying.pop(0).end()
        if flying:
            flying[-1].work()
        for trip in flying:
            trip.end()

    def _begin(self, chunks: TripChunks, given: _StepInputs) -> Trip:
        tracked = ExitStack()
        jobs = [given.begin(chunk, tracked) for chunk in chunks]
        return Trip([Loan(job, given.state, self.workspace) for job in jobs if job is not None], tracked)

    def _advance_(
        self,
        job: Job | None,
    ) -> None:
        if job is not None:
            advance_(*job.arguments(), workspace=self.workspace)
            job.finish()

    def _advance_all_(
        self,
        jobs: list[Job],
    ) -> None:
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


@dataclass
class _StepInputs:
    """Inputs of a step, handed out chunk by chunk; the arguments are those of `Round.update_`."""

    state: MutableMapping[Tensor, Any]
    reference: ReferencePoint
    gradients: list[Tensor]
    references: list[Tensor]
    signal: list[Tensor | None] | None
    partners: Mapping[Tensor, Partner]
    exchange: Exchange
    start: int = 0

    def begin(
        self,
        chunk: Chunk,
        tracked: ExitStack,
    ) -> Job | None:
        """Return the job of the next chunk; `tracked` then records where its parameters come from."""
        part = slice(self.start, self.start + len(chunk.indices))
        self.start = part.stop
        old = self.references[part] if self.references else None
        heard = self.signal[part] if self.signal is not None else None
        tracked.enter_context(self.reference.tracking(chunk.group, chunk.params))
        return prepare(self.state, chunk, self.gradients[part], old, heard, self.partners, self.exchange)


def full_precision(params: Iterable[Tensor]) -> ExitStack:
    """Return a context in which products keep their dtype, also where the step is taken under autocast."""
    context = ExitStack()
    for kind in {parameter.device.type for parameter in params} - {"meta"}:
        if torch.is_autocast_enabled(kind):
            context.enter_context(torch.autocast(kind, enabled=False))
    return context
