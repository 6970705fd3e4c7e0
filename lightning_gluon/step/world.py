"""Plan of a step on many ranks: what each does with the pieces it holds, and which matrices travel to an owner.

A norm of entries or of rows needs no more than pieces of whole rows, an estimator no more than any piece. Everything
else is lent: all pieces of a matrix go to one rank, its owner, which takes the LMO, and the pieces of that come back.
Owners are found for the whole model at once, so that the work is balanced. Then it is cut in trips of bounded size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms.table import NORMS, norm_of
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.options import Group
from lightning_gluon.ranks.groups import ONE_RANK, MeshGroups, Ranks
from lightning_gluon.ranks.layout import Layout, layout_of
from lightning_gluon.ranks.owners import assign, cut_rounds
from lightning_gluon.ranks.packing import TensorForm
from lightning_gluon.ranks.pieces import is_sharded, local
from lightning_gluon.step.operands import operand_dtype
from lightning_gluon.step.plan import Chunk, Stack, build_plan, chunk_limit, factored_of, stacks_of, views_of
from lightning_gluon.step.state import shared_layout

TripChunks = list[Chunk]  # chunks whose matrices travel together


@dataclass
class World:
    """Places of an optimizer's parameters on the ranks of a run.

    Args:
        layouts: Layout of every parameter.
        everyone: All ranks that step together.
        groups: The optimizer's groups.
    """

    layouts: dict[Tensor, Layout]
    everyone: Ranks
    groups: list[Group]

    @classmethod
    def of(
        cls,
        groups: list[Group],
        data_parallel: Ranks,
    ) -> World | None:
        """Return the places of parameters; `None` if there is one rank, or nothing that ranks could do together.

        Args:
            groups: The optimizer's groups.
            data_parallel: Ranks that hold the same plain parameters.

        Raises:
            NotImplementedError: If a parameter is laid out in a way that is not understood.
        """
        meshes = MeshGroups()
        layouts = {
            parameter: layout_of(name, parameter, meshes, data_parallel)
            for group in groups
            for name, parameter in _read_by(group)
        }
        everyone = max((layout.everyone for layout in layouts.values()), key=lambda ranks: ranks.size, default=ONE_RANK)
        if everyone.size == 1:
            return None
        members = set(everyone.members)
        for layout in layouts.values():
            if not members.issuperset(layout.everyone.members) and layout.everyone.size > 1:
                raise NotImplementedError(
                    f"Parameters lie on the ranks {layout.everyone.members} and on {everyone.members}, and neither "
                    "group holds the other. Make one mesh for all of them."
                )
        world = cls(layouts, everyone, groups)
        for member in world.members():
            member.check()
        return world if world.sharded or any(member.is_lent(True) for member in world.members()) else None

    def members(self) -> Iterator[Placed]:
        """Iterate over all parameters."""
        for group in self.groups:
            for index in range(len(group["params"])):
                yield self.placed(group, index)

    def placed(
        self,
        group: Group,
        index: int,
    ) -> Placed:
        """Return a parameter of a group."""
        partner = group["partners"][index] if NORMS[group["norm"]].reads_partner else None
        read = None if partner is None else self.layouts[partner.weight]
        cut = None if read is None or read.shards.size == 1 else read
        return Placed(group, index, self.layouts[group["params"][index]], cut)

    @property
    def sharded(self) -> bool:
        """True if parameters are `DTensor`s of several ranks."""
        return any(is_sharded(parameter) and layout.slots > 1 for parameter, layout in self.layouts.items())


def _read_by(group: Group) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the parameters of a group and their partners, which may be of no group."""
    for index, (name, parameter) in enumerate(zip(group["param_names"], group["params"], strict=True)):
        yield name, parameter
        partner = group["partners"][index] if NORMS[group["norm"]].reads_partner else None
        if partner is not None:
            yield f"the partner of {name}", partner.weight


@dataclass(frozen=True)
class Placed:
    """A parameter of a group, on the ranks of a run.

    Args:
        group: The group.
        index: Its position there.
        layout: Its layout.
        partner: The layout of its partner, if its norm reads one and that is cut.
    """

    group: Group
    index: int
    layout: Layout
    partner: Layout | None = None

    @property
    def parameter(self) -> Tensor:
        """The parameter."""
        return self.group["params"][self.index]

    @property
    def learns(self) -> bool:
        """True if it has a gradient, and entries."""
        return self.parameter.grad is not None and self.parameter.numel() > 0

    @property
    def views(self) -> tuple[MatrixView, ...]:
        """The matrices of the whole parameter."""
        return views_of(self.group, self.index)

    @property
    def cost(self) -> float:
        """Arithmetic of its LMO."""
        norm = norm_of(self.group)
        return sum(view.matrix[0] * norm.cost(*view.matrix[1:]) for view in self.views)

    @property
    def operand(self) -> torch.dtype | None:
        """The dtype in which its direction may travel; `None` for its own."""
        like = local(self.parameter)
        wide = like.new_empty((), dtype=torch.promote_types(like.dtype, torch.float32))
        return operand_dtype(norm_of(self.group), wide, self.views)

    @property
    def factored(self) -> bool:
        """True if its momentum is carried at low rank: it is compressed where it is whole."""
        return bool(factored_of(self.group, self.index))

    @property
    def keeps_whole(self) -> bool:
        """True if something besides the LMO looks at whole matrices."""
        norm = norm_of(self.group)
        return bool(norm.statistics or norm.reads_weights or self.group.get("retract"))

    @property
    def local_views(self) -> tuple[MatrixView, ...] | None:
        """The matrices of this rank's piece; `None` if it holds parts that say nothing without the rest."""
        layout, norm = self.layout, NORMS[self.group["norm"]]
        if not layout.cuts:
            return self.views
        size = layout.own.size
        separable = vars(norm).get("separable", ())  # a subclass may see more of a matrix, and has to say so itself
        if not norm.matrices:
            return (MatrixView.flat(size),) if set(separable) == {-2, -1} else None
        shape = layout.shape
        plain = self.views == (MatrixView.whole(shape),) and len(shape) > 1
        rank = len(shape)
        allowed = {*range(rank - 2), *(rank + dim for dim in separable)}
        return (MatrixView.whole(size),) if plain and layout.cuts <= allowed else None

    @property
    def keeps_rows(self) -> bool:
        """True if its ranks can step and compress it by whole rows together, so that none ever holds all of it."""
        return self.layout.cuts == {0} and self.local_views is not None and not self.keeps_whole

    def is_lent(
        self,
        share: bool,
    ) -> bool:
        """Return whether its matrices travel.

        Args:
            share: Whether ranks that hold the same matrices share their LMOs.
        """
        estimator, norm = ESTIMATORS[self.group["estimator"]], NORMS[self.group["norm"]]
        if self.layout.slots == 1 or estimator.step_ is not None:
            return False
        sharded = is_sharded(self.parameter)
        if self.factored:
            return not self.keeps_rows if sharded else share and not self.group.get("feedback")
        if not norm.stacks:
            return False
        if sharded and (self.local_views is None or self.keeps_whole):
            return True
        alike = self.layout.copies.size > 1 and (sharded or share)
        return alike and self.cost > self.parameter.numel()

    def check(self) -> None:
        """Raise if its pieces are too little for its group.

        Raises:
            NotImplementedError: If they are.
        """
        group = self.group
        if self.partner is not None and self.partner.shards != self.layout.shards:
            why = f"norm {group['norm']!r} reads another parameter that is cut over other ranks"
            raise self._unsupported(why, "Cut both alike, or give both the role 'hidden' by `rules`.")
        if self.layout.slots == 1 or not is_sharded(self.parameter):
            return
        estimator = ESTIMATORS[group["estimator"]]
        if estimator.messages:
            raise self._unsupported(f"estimator {group['estimator']!r} needs whole gradients")
        if self.factored and group.get("feedback"):
            raise self._unsupported("`feedback` is kept by rows of whole matrices", "Use DDP, or leave it out.")

    def _unsupported(
        self,
        why: str,
        remedy: str = "Use DDP, or another method.",
    ) -> NotImplementedError:
        name = self.group["param_names"][self.index]
        return NotImplementedError(f"{name!r} lies on several ranks, but {why}. {remedy}")


def world_plan(
    world: World,
    *,
    share: bool,
    chunk_numel: int | None = None,
) -> tuple[list[Chunk], list[TripChunks]]:
    """Return the chunks that a rank steps by itself, and the trips of those that travel.

    Args:
        world: The parameters on the ranks.
        share: Whether ranks that hold the same matrices share their LMOs.
        chunk_numel: As in `build_plan`.

    Returns:
        Chunks and trips, in an order that is the same on all ranks.
    """
    lent = [member for member in world.members() if member.learns and member.is_lent(share)]
    away = {(id(member.group), member.index) for member in lent}
    chunks = build_plan(world.groups, chunk_numel=chunk_numel, away=away)
    for chunk in chunks:
        _lay_out(chunk, world)
    return chunks, [trip for together in _by_ranks(lent) for trip in _trips(together, chunk_numel)]


def _lay_out(
    chunk: Chunk,
    world: World,
) -> None:
    """Give a chunk that does not travel its layouts, and the matrices of its pieces."""
    members = [world.placed(chunk.group, index) for index in chunk.indices]
    chunk.layouts = [member.layout for member in members]
    if chunk.sharded and chunk.stacks:
        views = [member.local_views or () if member.layout.own.numel else () for member in members]
        chunk.stacks = stacks_of(chunk.group, views)


def _by_ranks(members: Iterable[Placed]) -> list[list[Placed]]:
    """Part members by the ranks that they lie on."""
    found: dict[tuple[int, int], list[Placed]] = {}
    for member in members:
        key = (id(member.layout.shards.group), id(member.layout.copies.group))
        found.setdefault(key, []).append(member)
    return list(found.values())


def _trips(
    members: Sequence[Placed],
    chunk_numel: int | None,
) -> list[TripChunks]:
    """Find the owners of members on the same ranks, and cut their work in trips."""
    costs = [member.cost for member in members]
    sizes = [math.prod(member.layout.shape) for member in members]
    owners = assign(costs, members[0].layout.slots)
    limit = chunk_numel or chunk_limit(members[0].parameter.device.type)
    trips = []
    for items in cut_rounds(owners, costs, sizes, limit):
        parts: dict[tuple[int, torch.dtype, torch.dtype | None], list[int]] = {}
        for item in items:
            key = (id(members[item].group), members[item].parameter.dtype, members[item].operand)
            parts.setdefault(key, []).append(item)
        lent = [_lend([members[item] for item in part], [owners[item] for item in part]) for part in parts.values()]
        trips.append(lent)
    return trips


def _lend(
    members: list[Placed],
    owners: list[int],
) -> Chunk:
    """Return a chunk of parameters that travel to these owners."""
    group, one = members[0].group, members[0].layout
    here = one.copies.place * one.shards.size + one.shards.place
    mine = [member for member, owner in zip(members, owners, strict=True) if owner == here]
    return Chunk(
        group,
        [member.index for member in members],
        [],
        factored=[factored_of(group, member.index) for member in members],
        layouts=[member.layout for member in members],
        owners=owners,
        partners=[member.partner for member in members],
        own=Chunk(
            group,
            [member.index for member in mine],
            _whole_stacks(group, mine),
            factored=[factored_of(group, member.index) for member in mine],
        ),
        shared=[_shared_forms(group, member.index) for member in members],
    )


def _shared_forms(
    group: Group,
    index: int,
) -> dict[str, TensorForm]:
    return {name: TensorForm.of(entry) for name, entry in shared_layout(group, index).items()}


def _whole_stacks(
    group: Group,
    members: list[Placed],
) -> list[Stack]:
    if not NORMS[group["norm"]].stacks:
        return []
    return stacks_of(group, [member.views for member in members])
