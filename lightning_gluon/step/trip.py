"""Trips of whole matrices: pieces of directions to their owners, the LMO there, pieces of the steps back.

    begin   estimator on pieces      M <- estimator(M, c_new, c_old)
    send    pieces of directions     rounded as the LMO rounds             pieces of M on their way to the owners
    work    LMO at the owners        D(M) of whole matrices                pieces of D on their way back
    end     weights                  X <- (1 - lr weight_decay) X - lr radius D

Four trips are under way at once: while one works, the next is sent, another has begun, and the one before it ends. The
operations on entries are those of one rank, in the same order and dtype, so the weights are the same bit for bit.

Norms that read weights, and retractions, need whole weights too. Those then travel along, and come back moved. So does
the other factor of a product, which comes back to nobody.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_gluon.norms.base import MATRIX, Norm
from lightning_gluon.norms.needs import Context, Partner
from lightning_gluon.norms.numerics import Workspace
from lightning_gluon.norms.table import norm_of
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.options import Group
from lightning_gluon.ranks.groups import Ranks
from lightning_gluon.ranks.layout import Layout
from lightning_gluon.ranks.packing import TensorForm
from lightning_gluon.ranks.transfer import Collection, Parcel, Transfer
from lightning_gluon.step.advance import (
    Job,
    MutableState,
    decay_of,
    direction_of,
    lmo_of,
    move_weights_,
    read_statistics,
    subtract_,
)
from lightning_gluon.step.factors import compress_whole_
from lightning_gluon.step.operands import Operand, Rounding, operand_dtype, runs_of
from lightning_gluon.step.plan import TravelTypes, views_of

TensorLists: TypeAlias = list[list[Tensor]]  # by parameter


class Loan:
    """A job whose matrices travel.

    Args:
        job: The job, on pieces.
        state: The optimizer's state, by parameter.
        workspace: Buffers to reuse.
    """

    def __init__(
        self,
        job: Job,
        state: MutableState,
        workspace: Workspace,
    ) -> None:
        chunk = job.chunk
        assert chunk.own is not None
        self.job, self.state, self.workspace = job, state, workspace
        self.chunk, self.own, self.like = chunk, chunk.own, job.new[0]
        norm, step = norm_of(chunk.group), chunk.group["steps"]
        self.norm = norm.at(step)
        begins = any(statistic.start is not None for statistic in self.norm.statistics)
        self.moves_whole = bool(self.norm.reads_weights or chunk.group.get("retract") or begins)
        owned = set(self.own.indices)
        self.mine = [member for member, index in enumerate(chunk.indices) if index in owned]

    @property
    def types(self) -> TravelTypes:
        """Dtypes of what travels, found once for every norm: that takes an LMO of one entry per matrix."""
        asked, known = (self.norm, self.like.dtype), self.chunk.types
        if known is None or known.asked != asked:
            known = self.chunk.types = TravelTypes(asked, self._operand_dtype(), self._step_dtypes())
        return known

    def _operand_dtype(self) -> torch.dtype | None:
        """Return the dtype to which pieces of directions may be rounded before they travel."""
        chunk = self.chunk
        reads = self.moves_whole or not self.norm.stacks or any(chunk.factored)
        if reads or chunk.layouts[0].shards.size == 1:
            return None
        found = {operand_dtype(self.norm, self.like, views_of(chunk.group, index)) for index in chunk.indices}
        return found.pop() if len(found) == 1 else None

    def operands(
        self,
        sent: TensorLists,
    ) -> list[Operand]:
        """Return the directions that may be rounded before they travel.

        Args:
            sent: Result of `begin`.
        """
        dtype = self.types.operand
        if dtype is None:
            return []
        views = [views_of(self.chunk.group, index) for index in self.chunk.indices]
        rows = zip(sent, views, self.chunk.layouts, strict=True)
        return [Operand(tensors[0], own, layout, self.norm, dtype) for tensors, own, layout in rows]

    @property
    def stays(self) -> bool:
        """True if the norm of this step reads entries one by one, so that pieces are enough."""
        entries = set(vars(type(self.norm)).get("separable", ())) == set(MATRIX)
        return entries and not self.moves_whole and not any(self.chunk.factored)

    def step_here_(self, sent: TensorLists) -> None:
        """Move the weights by pieces alone.

        Args:
            sent: Result of `begin`.
        """
        units = []
        for (piece,) in sent:
            staged = piece.to(self.norm.staging_dtype(piece), copy=True)
            flat = self.norm.lmo_(staged.view(1, 1, piece.numel()), Context(self.workspace))
            units.append(flat.view(piece.shape))
        self.end(units, [[] for _ in units])

    def begin(self) -> TensorLists:
        """Advance the buffers.

        Returns:
            What travels of every parameter: its direction, and its weights, momentum and partner if its owner needs
            them.
        """
        job = self.job
        direction = direction_of(self.chunk, job.new, job.old, job.buffers, job.options, job.signal)
        sent = [[one] for one in direction]
        for member, tensors in enumerate(sent):
            if self.moves_whole:
                tensors.append(job.params[member])
            momentum = job.buffers["momentum"][member] if self.chunk.factored[member] else tensors[0]
            if momentum is not tensors[0]:
                tensors.append(momentum)
            if self.chunk.partners[member] is not None:
                tensors.append(job.partners[member].weight)
        return sent

    def layouts(
        self,
        sent: TensorLists,
    ) -> list[list[Layout]]:
        """Return the layouts of what travels of every parameter.

        Args:
            sent: Result of `begin`.
        """
        found = []
        for layout, partner, tensors in zip(self.chunk.layouts, self.chunk.partners, sent, strict=True):
            own = [layout] * len(tensors)
            if partner is not None:
                own[-1] = partner
            found.append(own)
        return found

    def work(
        self,
        whole: TensorLists,
    ) -> list[Tensor]:
        """Return the steps of the matrices that this rank owns, or their weights after the step.

        Args:
            whole: What has come of every parameter that this rank owns.
        """
        if not whole:
            return []
        partners = self._partners(whole)
        own, direction = self.own, [tensors[0] for tensors in whole]
        weights = [tensors[1] for tensors in whole] if self.moves_whole else direction
        for stack in own.stacks:
            stack.choose(self.norm, self.like)
        found = self._step(weights, direction, partners)
        momenta = [tensors[-1] if len(tensors) > 1 + self.moves_whole else tensors[0] for tensors in whole]
        states = [self.state[parameter] for parameter in own.params]
        compress_whole_(states, own.params, own.factored, own.group, momenta)
        return found

    def _partners(
        self,
        whole: TensorLists,
    ) -> list[Partner]:
        """Return the partners of the matrices that this rank owns; those that have come are taken out of the lists."""
        job, found = self.job, []
        for member, tensors in zip(self.mine, whole, strict=True):
            if self.chunk.partners[member] is not None:
                found.append(replace(job.partners[member], weight=tensors.pop()))
            elif job.partners:
                found.append(job.partners[member])
        return found

    def _step(
        self,
        weights: list[Tensor],
        direction: list[Tensor],
        partners: list[Partner],
    ) -> list[Tensor]:
        """Return the weights after the step, or the LMO of the directions, up to the norm's scale."""
        job, own = self.job, self.own
        if not self.moves_whole and not self.norm.stacks:
            return direction
        pairs = zip(weights, own.params, strict=True)
        kept = read_statistics({one: self.state[parameter] for one, parameter in pairs}, own, weights)
        if not self.moves_whole:
            return self._units(direction, kept, partners)
        lengths: Any = [job.lengths[member] for member in self.mine]
        move_weights_(own, weights, direction, kept, partners, lengths, job.keep, self.workspace)
        return weights

    def shared_of(
        self,
        member: int,
    ) -> list[Tensor]:
        """Return the state of one parameter that its owner gives to all ranks."""
        state = self.state[self.chunk.params[member]]
        return [state[name] for name in self.chunk.shared[member]]

    def _units(
        self, direction: list[Tensor], kept: list[dict[str, list[Tensor]]], partners: list[Partner]
    ) -> list[Tensor]:
        dtypes = self.types.steps
        units = []
        for member, one in zip(self.mine, direction, strict=True):
            units.append(torch.empty_like(one, dtype=dtypes[member]))
        for stack, statistics in zip(self.own.stacks, kept, strict=True):
            rounds = self.types.operand is not None
            batch = lmo_of(stack, direction, direction, statistics, partners, self.workspace, scaled=rounds)
            for slot in stack.slots:
                unit = units[slot.member]
                slot.of(unit).copy_(slot.read(slot.place(batch, unit.shape)))
        return units

    def _step_dtypes(self) -> list[torch.dtype]:
        """Return the dtype of what comes back of every parameter, which all ranks have to know."""
        count = len(self.chunk.indices)
        if self.moves_whole:
            return [self.job.params[0].dtype] * count
        if not self.norm.stacks:
            return [self.like.dtype] * count
        return [self._unit_dtype(self.chunk.group, index) for index in self.chunk.indices]

    def _unit_dtype(
        self,
        group: Group,
        index: int,
    ) -> torch.dtype:
        found = [unit_dtype(self.norm, self.like, view) for view in views_of(group, index)]
        return functools.reduce(torch.promote_types, found)

    def end(
        self,
        pieces: list[Tensor],
        shared: TensorLists,
    ) -> None:
        """Move the weights, and keep what is shared.

        Args:
            pieces: Pieces of the steps of all parameters, or of their weights.
            shared: State of all parameters that is the same on every rank, in the order of `chunk.shared`.
        """
        job = self.job
        device = job.params[0].device
        pieces = [piece.to(device) for piece in pieces]
        if self.moves_whole:
            torch._foreach_copy_(job.params, pieces)
        else:
            self._move_(pieces)
        for parameter, forms, tensors in zip(self.chunk.params, self.chunk.shared, shared, strict=True):
            own = self.state[parameter]
            for name, tensor in zip(forms, tensors, strict=True):
                own[name] = tensor.to(device, copy=True)
        job.finish()

    def _move_(
        self,
        pieces: list[Tensor],
    ) -> None:
        job, params = self.job, self.job.params
        decay = decay_of(self.chunk)
        if job.keep != 1:
            decay.shrink_(params, job.keep, pieces if decay.reads_units else [])
        targets: list[Tensor] = []
        units: list[Tensor] = []
        lengths: list[Any] = []
        for member, parameter in enumerate(params):
            for target, unit, length in self._parts(member, parameter, pieces[member]):
                targets.append(target)
                units.append(unit)
                lengths.append(length)
        subtract_(targets, units, lengths)

    def _parts(
        self,
        member: int,
        parameter: Tensor,
        piece: Tensor,
    ) -> list[tuple[Tensor, Tensor, Any]]:
        """Return the parts of a piece that have steps of one length: all of it, or the part of each matrix."""
        views = views_of(self.chunk.group, self.chunk.indices[member])
        length: Any = self.job.lengths[member]
        scaled = []
        for view in views:
            chosen = self.norm.on(self.like, view.matrix)  # the scale belongs to the units that the owner has made
            scaled.append(length * chosen.scale(*view.matrix[1:], view.kernel))
        if len(set(scaled)) == 1:
            return [(parameter, piece, scaled[0])]
        region = self.chunk.layouts[member].own
        found = []
        for view, own in zip(views, scaled, strict=True):
            for start, size in runs_of(view, self.chunk.layouts[member].shape, region):
                found.append((parameter.narrow(view.dim, start, size), piece.narrow(view.dim, start, size), own))
        return found


def unit_dtype(
    norm: Norm,
    like: Tensor,
    view: MatrixView,
) -> torch.dtype:
    """Return the dtype in which a norm returns directions of some matrices, as it does for a matrix of one entry.

    Args:
        norm: The norm.
        like: A tensor of the device and dtype of the directions.
        view: The matrices.
    """
    sides = sorted(view.matrix[1:]) if norm.turns else view.matrix[1:]
    chosen = norm.on(like, (view.matrix[0], *sides))
    stack = like.new_zeros((1, 1, 1), dtype=chosen.staging_dtype(like))
    statistics = {own.name: own.first(stack) for own in chosen.statistics}
    context = Context(scales=torch.ones_like(stack), statistics=statistics)
    return chosen.lmo_(stack, context).dtype


class Trip:
    """Loans that travel together; those that need no whole matrices in this step stay.

    Args:
        loans: The loans, none of them advanced.
        tracked: What records where their parameters come from, until they have moved.
    """

    def __init__(
        self,
        loans: Sequence[Loan],
        tracked: ExitStack,
    ) -> None:
        self.tracked, self.device = tracked, loans[0].like.device
        self.loans: list[Loan] = []
        self.lists: list[TensorLists] = []
        self.rounded: list[TensorLists] = []  # those of the lists whose directions are rounded
        operands: list[Operand] = []
        for loan in loans:
            sent = loan.begin()
            if loan.stays:
                loan.step_here_(sent)
                continue
            self.loans.append(loan)
            self.lists.append(sent)
            own = loan.operands(sent)
            operands += own
            self.rounded += [sent] if own else []
        self.rounding = Rounding(operands) if operands else None

    @property
    def ranks(self) -> Ranks | None:
        """The ranks that hold its matrices together; `None` if nothing travels."""
        return self.loans[0].chunk.layouts[0].shards if self.loans else None

    def _transfer(
        self,
        layouts: Iterable[Sequence[Sequence[Layout]]],
    ) -> Transfer:
        """Return a transfer of tensors that lie so, for every parameter of every loan."""
        parcels: list[Parcel] = []
        for loan, lists in zip(self.loans, layouts, strict=True):
            for owner, own in zip(loan.chunk.owners, lists, strict=True):
                parcels += [Parcel(layout, owner) for layout in own]
        return Transfer(parcels, self.device)

    def send(self, before: Trip | None, after: Trip | None) -> None:
        """Send the pieces of directions to the owners, and the largest entries of the trip after it to all.

        Args:
            before: The trip that was sent before it.
            after: The trip that is sent after it.
        """
        if not self.loans:
            return
        self._round_(before)
        self.counts = [list(map(len, sent)) for sent in self.lists]
        layouts = [loan.layouts(sent) for loan, sent in zip(self.loans, self.lists, strict=True)]
        pieces = [tensor for sent in self.lists for tensors in sent for tensor in tensors]
        del self.lists, self.rounded
        rounding = after.rounding if after is not None and after.ranks == self.ranks else None
        self.there = self._transfer(layouts).collect(pieces, rounding.tops if rounding is not None else None)

    def _round_(self, before: Trip | None) -> None:
        """Round the directions that their LMO would round."""
        if self.rounding is None:
            return
        notes = before.arrived.notes if before is not None and before.ranks == self.ranks else []
        largest = torch.stack(notes).amax(0) if notes else self.rounding.reduced()
        places = [tensors for sent in self.rounded for tensors in sent]
        for tensors, one in zip(places, self.rounding.pieces(largest), strict=True):
            tensors[0] = one
        del self.rounding

    @cached_property
    def arrived(self) -> Collection:
        """Matrices that have come to this rank, which owns them."""
        return self.there.wait()

    def work(self) -> None:
        """Take the LMO of the matrices that are whole here, and send pieces of it back."""
        if not self.loans:
            return
        came = _arrivals(self.arrived.whole, self.counts)
        del self.there, self.arrived  # or their buffers would live until the weights have moved
        steps: dict[int, Tensor] = {}
        shared: dict[int, list[Tensor]] = {}
        dtypes: list[torch.dtype] = []
        forms: list[list[TensorForm]] = []
        for loan, whole in zip(self.loans, came, strict=True):
            first = len(dtypes)
            dtypes += loan.types.steps
            forms += [list(named.values()) for named in loan.chunk.shared]
            found = loan.work([whole[member] for member in loan.mine])
            for member, step in zip(loan.mine, found, strict=True):
                steps[first + member] = step
                shared[first + member] = loan.shared_of(member)
        back = self._transfer([[layout] for layout in loan.chunk.layouts] for loan in self.loans)
        self.back = back.share(steps, dtypes)
        self.news: TensorLists = back.spread(shared, forms) if any(forms) else [[] for _ in forms]

    def end(self) -> None:
        """Move the weights."""
        with self.tracked:
            pieces, news = iter(self.back.wait() if self.loans else ()), iter(self.news if self.loans else ())
            for loan in self.loans:
                count = len(loan.chunk.owners)
                loan.end(list(islice(pieces, count)), list(islice(news, count)))


def _arrivals(
    came: Mapping[int, Tensor],
    counts: Iterable[Sequence[int]],
) -> list[TensorLists]:
    """Return what has come, by loan and parameter; nothing of parameters that others own."""
    index = itertools.count()
    found = []
    for numbers in counts:
        places = [list(islice(index, number)) for number in numbers]
        there = [list(filter(came.__contains__, some)) for some in places]
        found.append([[came[place] for place in some] for some in there])
    return found
