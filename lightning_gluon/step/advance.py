"""One chunk of a step: the estimator is advanced, its direction goes through the LMO, the weights move.

    M <- estimator(M, c_new, c_old);   X <- (1 - lr * weight_decay) X - lr * radius * D(M);   X <- retraction(X)

The only place that moves parameters, besides the kernels of estimators that step by themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.carry import Carry, as_dtype
from lightning_gluon.estimators.ef21 import begins_anew
from lightning_gluon.estimators.messages import ALONE, Exchange
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms.needs import Context, Needs, Partner, Statistic
from lightning_gluon.norms.numerics import Workspace
from lightning_gluon.norms.table import norm_of
from lightning_gluon.ranks.pieces import local
from lightning_gluon.ranks.whole import WholeNorms
from lightning_gluon.step.decay import DECAYS, Decay
from lightning_gluon.step.factors import LentCarry, RowCarry
from lightning_gluon.step.plan import Chunk, Stack, stack_views
from lightning_gluon.step.retraction import RETRACTIONS, Retraction

MutableState = MutableMapping[Tensor, Any]
StepOptions = Mapping[str, Any]
Signal = list[Tensor | None]
SlotTensors = dict[str, list[Tensor]]  # a statistic of a stack: one tensor per slot


@dataclass
class Job:
    """A chunk with all that its step reads and writes on the device.

    Args:
        chunk: Layout and options.
        params: The weights.
        new: Gradients in fp32 or wider.
        old: Gradients at the previous iterate.
        buffers: The estimator's buffers, in the dtype of the gradients.
        kept: Statistics of norm and retraction, per stack.
        partners: For every parameter the other factor of its product, as it was before the step.
        lengths: Step length of every parameter, `lr * radius`.
        keep: What decay leaves of the weights, such as `1 - lr * weight_decay`.
        signal: 0 where an entry takes no step, 1 elsewhere; `None` for a parameter that steps whole.
        options: What the estimator reads in this step.
        carry: What keeps the buffers between steps.
    """

    chunk: Chunk
    params: list[Tensor]
    new: list[Tensor]
    old: list[Tensor]
    buffers: dict[str, list[Tensor]]
    kept: list[SlotTensors]
    partners: list[Partner]
    lengths: Sequence[float] | Tensor = ()
    keep: float | Tensor = 1.0
    signal: Signal | None = None
    options: StepOptions = field(default_factory=dict)
    carry: Carry | None = None

    def finish(self) -> None:
        """Keep the buffers for the next step."""
        assert self.carry is not None
        for name, values in self.buffers.items():
            self.carry.store(name, values)

    def to_tensors(self) -> None:
        """Prepare for a compiled step.

        What schedules change becomes tensors, since every number would make its own graph. What the step writes is
        marked as staying where it is: torch captures a CUDA graph only of what it may write in place.
        """
        dtype, device = self.new[0].dtype, self.params[0].device
        # Non-blocking, or the host would wait for the device.
        self.lengths = torch.tensor(self.lengths, dtype=dtype).to(device, non_blocking=True)
        changing = ESTIMATORS[self.chunk.group["estimator"]].changing(self.chunk.group)
        if changing:
            tensors = {name: _as_tensors(value, dtype, device) for name, value in changing.items()}
            self.options = {**self.options, **tensors}
        if self.chunk.group["weight_decay"]:
            self.keep = torch.full((), float(self.keep), dtype=dtype, device=device)
        statistics = itertools.chain.from_iterable(kept.values() for kept in self.kept)
        for tensor in itertools.chain(self.params, *self.buffers.values(), *statistics):
            torch._dynamo.mark_static_address(tensor, guard=False)

    def arguments(self) -> tuple:
        """Return the arguments of `advance_`."""
        tensors = (self.params, self.new, self.old, self.buffers, self.kept, self.partners)
        return self.chunk, *tensors, self.lengths, self.keep, self.options, self.signal


def _as_tensors(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a number as a tensor, or every number of a list."""
    if isinstance(value, list):
        return [_as_tensors(one, dtype, device) for one in value]
    return torch.full((), value, dtype=dtype, device=device)


def partners_of(chunks: Iterable[Chunk]) -> dict[Tensor, Partner]:
    """Return the partners of all parameters whose norm reads one, as they are before anything moves.

    Of one that is cut it is this rank's piece. A group names them in `partners`, a `Partner` or `None` for each of its
    parameters.
    """
    partners: dict[Tensor, Partner] = {}
    for chunk in chunks:
        if not norm_of(chunk.group).reads_partner:
            continue
        for index in chunk.indices:
            partner = chunk.group["partners"][index]
            if partner is not None:
                held = replace(partner, weight=local(partner.weight).detach().clone())
                partners[chunk.group["params"][index]] = held
    return partners


def prepare(
    state: MutableState,
    chunk: Chunk,
    new: list[Tensor],
    old: list[Tensor] | None,
    signal: Signal | None,
    partners: Mapping[Tensor, Partner],
    exchange: Exchange = ALONE,
) -> Job | None:
    """Load the buffers of a chunk; a chunk of an estimator that steps by itself is stepped here and now.

    Args:
        state: The optimizer's state, by parameter.
        chunk: Parameters of one group.
        new: Their gradients, which are only read.
        old: Their gradients at the previous iterate; `None` if there are none yet.
        signal: 0 if a gradient is rounding noise, 1 elsewhere; `None` for a parameter that is not judged.
        partners: Result of `partners_of`.
        exchange: Exchange with other workers, for estimators that send messages.

    Returns:
        What is left to do.
    """
    group, params = chunk.group, chunk.pieces
    state = chunk.state_of(params, state)
    norm, estimator = norm_of(group).at(group["steps"]), ESTIMATORS[group["estimator"]]
    if estimator.step_ is not None:
        estimator.step_(state, group, params, new)
        return None
    work = torch.promote_types(new[0].dtype, torch.float32)
    new = as_dtype(new, work)
    old = new if old is None else as_dtype(old, work)
    for stack in chunk.stacks:
        stack.choose(norm, new[0])
    states = [state[piece] for piece in params]
    carry = _carry_of(chunk, states, params)
    options = estimator.at(group)
    if chunk.sharded:
        options = {**options, "norms": WholeNorms(chunk.layouts)}
    if estimator.messages:
        anew = [begins_anew(own) for own in states]
        options = {**options, "exchange": exchange, "first": anew}
    return Job(
        chunk=chunk,
        params=params,
        new=new,
        old=old,
        buffers={name: carry.load(name, new, zero=name in estimator.messages) for name in estimator.names(group)},
        kept=read_statistics(state, chunk, params),
        partners=[partners[parameter] for parameter in chunk.params] if partners and norm.reads_partner else [],
        lengths=[group["lr"] * radius for radius in chunk.radii],
        keep=1 - decay_of(chunk).share(group),
        signal=signal,
        options=options,
        carry=carry,
    )


def _carry_of(chunk: Chunk, states: list[Any], params: list[Tensor]) -> Carry:
    if chunk.owners:
        return LentCarry(states, params, chunk.factored, chunk.group, chunk.layouts)
    if chunk.sharded and any(chunk.factored):
        return RowCarry(states, params, chunk.factored, chunk.group, chunk.layouts)
    return Carry(states, params, chunk.factored, chunk.group)


def read_statistics(state: MutableState, chunk: Chunk, params: list[Tensor]) -> list[SlotTensors]:
    """Return the statistics of every stack, and begin those that are not there yet.

    Args:
        state: The optimizer's state, by parameter.
        chunk: The chunk, with a norm in every stack.
        params: The weights.
    """
    found = []
    for stack in chunk.stacks:
        declared = [statistic for part in _parts(chunk, stack) for statistic in part.statistics]
        kept = {statistic.name: _of_slots(state, stack, params, statistic) for statistic in declared}
        found.append(kept)
    return found


def _of_slots(state: MutableState, stack: Stack, params: list[Tensor], statistic: Statistic) -> list[Tensor]:
    """Return one statistic of every slot of a stack."""
    found = []
    for slot in stack.slots:
        parameter = params[slot.member]
        own = state[parameter]
        key = f"{statistic.name}{slot.index}"
        if key not in own:
            own[key] = statistic.first(slot.matrices(parameter))
        found.append(own[key])
    return found


def _parts(chunk: Chunk, stack: Stack) -> list[Needs]:
    parts = [stack.norm, retraction_of(chunk)]
    return [part for part in parts if part is not None]


def decay_of(chunk: Chunk) -> Decay:
    """Return the way in which weights of a chunk decay."""
    return DECAYS[chunk.group["decay"]]


def retraction_of(chunk: Chunk) -> Retraction | None:
    """Return where matrices of a chunk are brought back to, if anywhere."""
    name = chunk.group.get("retract")
    return None if name is None else RETRACTIONS[name]


def advance_all_(jobs: list[tuple]) -> None:
    """Advance all chunks of a step, as one graph for a compiler."""
    for arguments in jobs:
        advance_(*arguments, workspace=Workspace())


def advance_(
    chunk: Chunk,
    params: list[Tensor],
    new: list[Tensor],
    old: list[Tensor],
    buffers: dict[str, list[Tensor]],
    kept: list[SlotTensors],
    partners: list[Partner],
    lengths: Sequence[float] | Tensor,
    keep: float | Tensor,
    options: StepOptions,
    signal: Signal | None = None,
    *,
    workspace: Workspace,
) -> None:
    """Advance buffers and weights: all that runs on the device, and nothing that waits for it.

    Args:
        chunk: Layout and options.
        params: The weights.
        new: Gradients in fp32 or wider.
        old: Gradients at the previous iterate.
        buffers: The estimator's buffers, in the dtype of the gradients.
        kept: Statistics of norm and retraction, per stack.
        partners: For every parameter the other factor of its product; empty if the norm reads none.
        lengths: Step length of every parameter, `lr * radius`.
        keep: What decay leaves of the weights, `1 - lr * weight_decay`.
        options: What the estimator reads in this step.
        signal: 0 where an entry takes no step, 1 elsewhere; `None` for a parameter that steps whole.
        workspace: Buffers to reuse.
    """
    direction = direction_of(chunk, new, old, buffers, options, signal)
    move_weights_(chunk, params, direction, kept, partners, lengths, keep, workspace)


def direction_of(
    chunk: Chunk,
    new: list[Tensor],
    old: list[Tensor],
    buffers: dict[str, list[Tensor]],
    options: StepOptions,
    signal: Signal | None,
) -> list[Tensor]:
    """Advance the buffers, and return the directions; the arguments are those of `advance_`."""
    direction = ESTIMATORS[chunk.group["estimator"]].update(buffers, new, old, options)
    return direction if signal is None else _heard(direction, signal)


def move_weights_(
    chunk: Chunk,
    params: list[Tensor],
    direction: list[Tensor],
    kept: list[SlotTensors],
    partners: list[Partner],
    lengths: Sequence[float] | Tensor,
    keep: float | Tensor,
    workspace: Workspace,
) -> None:
    """Move the weights along the LMO of directions; the arguments are those of `advance_`."""
    decay = decay_of(chunk)
    decays = isinstance(keep, Tensor) or keep != 1
    if decays and not decay.reads_units:
        decay.shrink_(params, keep, [])
    if not chunk.stacks:  # the direction itself is the step
        if decays and decay.reads_units:
            decay.shrink_(params, keep, direction)
        subtract_(params, direction, list(lengths))
        return
    for stack, statistics in zip(chunk.stacks, kept, strict=True):
        units = lmo_of(stack, params, direction, statistics, partners, workspace)
        targets = [slot.of(params[slot.member]) for slot in stack.slots]
        places = stack.places(units, params, workspace)
        pieces = [slot.read(place) for slot, place in zip(stack.slots, places, strict=True)]
        if decays and decay.reads_units:
            decay.shrink_(targets, keep, pieces)
        before = _weights_before(chunk, stack, params, workspace)
        subtract_(targets, pieces, _scaled(stack, lengths))
        _retract_(chunk, stack, params, statistics, before, workspace)


def _heard(direction: list[Tensor], signal: Signal) -> list[Tensor]:
    """Return directions without the entries that are rounding noise: the LMO of zero is zero, and of a part its own."""
    judged = {index: entries for index, entries in enumerate(signal) if entries is not None}
    if not judged:
        return direction
    kept = torch._foreach_mul([direction[index] for index in judged], list(judged.values()))
    replaced = dict(zip(judged, kept, strict=True))
    return [replaced.get(index, whole) for index, whole in enumerate(direction)]


def _scaled(stack: Stack, lengths: Sequence[float] | Tensor) -> list[Any]:
    """Return the length of every slot's step, by the factor that makes its unit a point of the unit sphere."""
    return [lengths[slot.member] * scale for slot, scale in zip(stack.slots, stack.scales, strict=True)]


def subtract_(targets: list[Tensor], pieces: list[Tensor], lengths: list[Any]) -> None:
    """Subtract `length piece` from every target; equal numbers in one call."""
    if isinstance(lengths[0], Tensor):
        for target, piece, length in zip(targets, pieces, lengths, strict=True):
            target.sub_(piece.to(length.dtype) * length)
        return
    for length in dict.fromkeys(lengths):
        where = [index for index, other in enumerate(lengths) if other == length]
        own_targets = [targets[index] for index in where]
        own_pieces = [pieces[index] for index in where]
        torch._foreach_add_(own_targets, own_pieces, alpha=-length)


def lmo_of(
    stack: Stack,
    params: list[Tensor],
    direction: list[Tensor],
    statistics: SlotTensors,
    partners: list[Partner],
    workspace: Workspace,
    *,
    scaled: bool = False,
) -> Tensor:
    """Return the directions of a stack, up to the norm's scale; `scaled` are those that are rounded already."""
    norm = stack.norm
    assert norm is not None
    context = Context(workspace, dtype=params[0].dtype, scaled=scaled)
    if norm.reads_weights:
        context.weights = _gather(stack, params, params[0].dtype, workspace, "weights")
    if norm.reads_scales:
        context.scales = _factors_of(stack, direction[0])
    if norm.reads_partner:
        context.partners = [partners[slot.member] for slot in stack.slots]
    context.statistics = _stack_statistics(norm, statistics)
    own = norm.overwrites and not norm.reads_only
    kind = direction[0].dtype if scaled else norm.staging_dtype(direction[0])
    batch = _gather(stack, direction, kind, workspace, "gather", copy=own)
    units = norm.lmo_(batch, context)
    _part_(stack, context.statistics, statistics)
    return units


def _factors_of(stack: Stack, like: Tensor) -> Tensor:
    """Return the norm's scale of every matrix `(count, 1, 1)`: matrices that are turned may have different ones."""
    scales = like.new_empty((stack.count, 1, 1))
    for slot, scale in zip(stack.slots, stack.scales, strict=True):
        scales[slot.start : slot.stop] = scale
    return scales


def _gather(
    stack: Stack, tensors: list[Tensor], dtype: torch.dtype, workspace: Workspace, buffer: str, *, copy: bool = False
) -> Tensor:
    """Return the matrices of a stack from parameter-shaped tensors; those that lie in memory like it are not copied."""
    like = tensors[stack.slots[0].member]
    rows, columns = stack.shape
    if not copy:
        joined = stack.joined(tensors) if like.dtype == dtype else None
        if joined is not None:
            return joined
        if stack.transposed:
            batch = workspace.take(buffer, (stack.count, columns, rows), like, dtype=dtype).mT
            stack_views(stack, tensors, batch, workspace)
            return batch
    batch = workspace.take(buffer, (stack.count, rows, columns), like, dtype=dtype)
    stack_views(stack, tensors, batch, workspace)
    return batch


def _stack_statistics(part: Needs, statistics: SlotTensors) -> dict[str, Tensor]:
    """Return a part's statistics for the whole stack."""
    return {own.name: torch.cat(statistics[own.name]) for own in part.statistics}


def _part_(stack: Stack, joined: Mapping[str, Tensor], statistics: SlotTensors) -> None:
    """Write statistics of a whole stack back to every slot."""
    for name, whole in joined.items():
        for slot, own in zip(stack.slots, statistics[name], strict=True):
            own.copy_(whole[slot.start : slot.stop])


def _weights_before(chunk: Chunk, stack: Stack, params: list[Tensor], workspace: Workspace) -> Tensor | None:
    """Return a copy of a stack's weights before they move, for a retraction that reads them."""
    retraction = retraction_of(chunk)
    if retraction is None or not retraction.reads_weights:
        return None
    wide = torch.promote_types(params[0].dtype, torch.float32)
    return _gather(stack, params, wide, workspace, "before", copy=True)


def _retract_(
    chunk: Chunk,
    stack: Stack,
    params: list[Tensor],
    statistics: SlotTensors,
    before: Tensor | None,
    workspace: Workspace,
) -> None:
    """Bring the matrices of a stack back to where the group's retraction wants them."""
    retraction = retraction_of(chunk)
    if retraction is None:
        return
    wide = torch.promote_types(params[0].dtype, torch.float32)
    weights = workspace.take("weights", (stack.count, *stack.shape), params[0], dtype=wide)
    stack_views(stack, params, weights)
    context = Context(workspace, before, statistics=_stack_statistics(retraction, statistics))
    retraction.retract_(weights, context)
    _part_(stack, context.statistics, statistics)
    for slot in stack.slots:
        parameter = params[slot.member]
        target = slot.of(parameter)
        target.copy_(slot.piece(weights, parameter.shape))
