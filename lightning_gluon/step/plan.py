"""Plan of the parameters that are stepped together: chunks of bounded size, each with stacks of equal matrices.

A chunk is what one round of the optimizer holds in memory besides the state; a stack is one batched LMO. Matrices that
are each other's transposes share a stack: a spectral LMO does not care which side is longer.
"""

from __future__ import annotations

from collections.abc import Container, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.low_rank import factored_views
from lightning_gluon.norms.base import Norm
from lightning_gluon.norms.numerics import Workspace
from lightning_gluon.norms.table import NORMS
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.options import Group
from lightning_gluon.ranks.layout import Layout
from lightning_gluon.ranks.packing import TensorForm
from lightning_gluon.ranks.pieces import PieceState, is_sharded, local, local_gradient

__all__ = ["Chunk", "Slot", "Stack", "build_plan", "chunk_limit", "factored_of", "stack_views", "views_of"]

# Entries of one chunk. A GPU wants it filled; a CPU wants the stack and its products to stay in the last-level cache:
# stacks of 384 x 384 take 1.4 times as long at 2^23 entries as at 2^20.
CHUNK_NUMEL = {"cpu": 2**20}
LARGE_CHUNK_NUMEL = 2**26


@dataclass
class Slot:
    """Place of one view of one parameter in a stack."""

    member: int
    view: MatrixView
    whole: bool
    transposed: bool
    start: int
    stop: int
    index: int = 0  # of the view among those of its parameter
    as_stored: bool = False  # in a stack of matrices that are all turned, and lie as they are stored

    def __post_init__(self) -> None:
        """See whether the slot is one matrix stored the other way round: those are copied by blocked transposition."""
        self.turned = self.transposed and not self.as_stored and self.view.is_plain and len(self.view.split) == 2

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part of a parameter-shaped tensor that this slot reads, sharing storage."""
        return tensor if self.whole else self.view.of(tensor)

    def matrices(self, tensor: Tensor) -> Tensor:
        """Return the matrices `(batch, rows, columns)` of a parameter-shaped tensor, as they lie in the stack."""
        found = self.view.gather(torch.atleast_1d(tensor))
        return found.mT if self.transposed else found

    def piece(self, stack: Tensor, shape: Sequence[int]) -> Tensor:
        """Return this slot's part of a stack in the layout that `of` returns, sharing storage."""
        block = stack[self.start : self.stop]
        matrices = block.mT if self.transposed else block
        return matrices.reshape(shape) if self.whole else self.view.unfold(matrices)

    def place(self, stack: Tensor, shape: Sequence[int]) -> Tensor:
        """Return this slot's part of a stack, as `source` fills it and `read` reads it."""
        return stack[self.start] if self.turned else self.piece(stack, shape)

    def source(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what to copy to a place, from a parameter-shaped tensor."""
        if self.turned:  # convert, then transpose in one dtype: five times faster on a CPU than both at once
            return self.of(tensor).to(dtype).mT
        return self.of(tensor)

    def read(self, place: Tensor) -> Tensor:
        """Return a place in the layout that `of` returns, in the order it is read."""
        return place.mT.contiguous() if self.turned else place


@dataclass(eq=False)
class Stack:
    """Matrices of one shape that go through the LMO as one batch."""

    shape: tuple[int, int]
    slots: list[Slot] = field(default_factory=list)
    count: int = 0
    norm: Norm | None = None  # of this step, with the choices made that depend on the stack
    scales: list[float] = field(default_factory=list)  # of its slots: a unit times this is on the norm's unit sphere
    transposed: bool = False  # all matrices are turned, and lie apart from those that are not
    _asked: tuple[Norm, torch.dtype] | None = field(default=None, repr=False)

    def places(self, buffer: Tensor, tensors: Sequence[Tensor], workspace: Workspace) -> list[Tensor]:
        """Return the part of every slot of the stack's buffer, made once for a buffer of the workspace.

        Args:
            buffer: `(count, rows, columns)`.
            tensors: Tensors of the parameters' shapes.
            workspace: The workspace.
        """

        def make() -> list[Tensor]:
            found = []
            for slot in self.slots:
                shape = tensors[slot.member].shape
                found.append(slot.place(buffer, shape))
            return found

        return workspace.parts(buffer, self, make)

    def choose(self, norm: Norm, like: Tensor) -> None:
        """Take the norm of a step, with every choice made that depends on the stack: again only if it is another one.

        Args:
            norm: The norm.
            like: A tensor of the stack's device and dtype.
        """
        asked = (norm, like.dtype)
        if self._asked != asked:
            self._asked = asked
            self.norm = norm.on(like, (self.count, *self.shape))
            self.scales = []
            for slot in self.slots:
                _, rows, columns = slot.view.matrix
                scale = self.norm.scale(rows, columns, slot.view.kernel)
                self.scales.append(scale)

    def joined(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Return the stack without a copy, if the parts of parameter-shaped tensors lie in memory one after the other.

        Args:
            tensors: Tensors of the parameters' shapes.

        Returns:
            `(count, rows, columns)`, sharing storage; `None` if they lie otherwise.
        """
        rows, columns = self.shape
        size = rows * columns
        if torch.compiler.is_compiling():  # a graph knows no addresses
            slot = self.slots[0]
            alone = len(self.slots) == 1 and slot.whole and not slot.transposed
            return tensors[slot.member].reshape(self.count, rows, columns) if alone else None
        first = self.slots[0].of(tensors[self.slots[0].member])
        storage = first.untyped_storage()._cdata
        start = first.storage_offset()
        for slot in self.slots:
            part = slot.of(tensors[slot.member])
            as_read = slot.transposed == self.transposed and slot.view.is_plain
            if not as_read or not part.is_contiguous():
                return None
            if part.storage_offset() != start + slot.start * size:
                return None
            if part.untyped_storage()._cdata != storage:
                return None
        if self.transposed:
            return first.as_strided((self.count, columns, rows), (size, rows, 1), start).mT
        return first.as_strided((self.count, rows, columns), (size, columns, 1), start)


@dataclass(frozen=True)
class TravelTypes:
    """Dtypes in which the matrices of a chunk travel.

    Args:
        asked: The norm and the dtype of directions that they were found for.
        operand: The dtype to which directions are rounded first; `None` if they travel as they are.
        steps: The dtype in which the step of every parameter comes back.
    """

    asked: tuple[Norm, torch.dtype]
    operand: torch.dtype | None
    steps: list[torch.dtype]


@dataclass
class Chunk:
    """Parameters of one group that are stepped in one round.

    Args:
        group: The group.
        indices: Their positions in it.
        stacks: Their matrices.
        factored: For every parameter, the matrices that its momentum is carried as at low rank.
        layouts: For every parameter, its place on the ranks of a run; empty where there is one rank.
        owners: For every parameter, the rank that gets its matrices whole; empty where none travel.
        partners: For every parameter that travels, the layout of its partner, if that is cut and travels along.
        own: The parameters among them that this rank owns, with their stacks; `None` where none travel.
        shared: For every parameter that travels, the state that is the same on all ranks.
        types: Dtypes in which they travelled last.
    """

    group: Group
    indices: list[int]
    stacks: list[Stack]
    factored: list[tuple[MatrixView, ...]] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    partners: list[Layout | None] = field(default_factory=list)
    own: Chunk | None = None
    shared: list[dict[str, TensorForm]] = field(default_factory=list)
    types: TravelTypes | None = None

    @property
    def params(self) -> list[Tensor]:
        """The parameters themselves."""
        return [self.group["params"][index] for index in self.indices]

    @cached_property
    def sharded(self) -> bool:
        """True if some are spread over ranks: then their pieces are stepped."""
        return any(map(is_sharded, self.params))

    @property
    def pieces(self) -> list[Tensor]:
        """The parts of them that this rank holds."""
        return list(map(local, self.params)) if self.sharded else self.params

    def state_of(self, pieces: Sequence[Tensor], state: MutableMapping[Tensor, Any]) -> MutableMapping[Tensor, Any]:
        """Return the optimizer's state of these parameters, by their pieces and as pieces."""
        if not self.sharded:
            return state
        pairs = zip(pieces, self.params, strict=True)
        return {piece: PieceState(state[parameter], parameter) for piece, parameter in pairs}

    @property
    def gradients(self) -> list[Tensor]:
        """Their gradients, as pieces, which all of them had when the plan was built."""
        pairs = [(parameter, parameter.grad) for parameter in self.params]
        if self.sharded:
            return [local_gradient(parameter, gradient) for parameter, gradient in pairs if gradient is not None]
        return [gradient for _, gradient in pairs if gradient is not None]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [self.group["param_names"][index] for index in self.indices]

    @property
    def radii(self) -> list[float]:
        """Their radii."""
        radius = self.group["radius"]
        if isinstance(radius, list):
            return [radius[index] for index in self.indices]
        return [radius] * len(self.indices)


def views_of(group: Group, index: int) -> tuple[MatrixView, ...]:
    """Return how the norm of a group reads one of its parameters: as matrices, or flat as one vector."""
    shape = tuple(group["params"][index].shape)
    if not NORMS[group["norm"]].matrices:
        return (MatrixView.flat(shape or (1,)),)
    views = group["views"][index]
    if views:
        return tuple(MatrixView(*view) for view in views)
    view = MatrixView.whole(shape) if len(shape) == 2 else MatrixView.conv(shape)
    return (view,)


def factored_of(group: Group, index: int) -> tuple[MatrixView, ...]:
    """Return the matrices that a parameter's momentum is carried as at low rank; nothing for a dense carry."""
    rank = group.get("rank")
    if rank is None or not NORMS[group["norm"]].matrices:
        return ()
    shape = tuple(group["params"][index].shape)
    return factored_views(rank, shape, views_of(group, index))


def build_plan(
    groups: list[Group], *, chunk_numel: int | None = None, away: Container[tuple[int, int]] = ()
) -> list[Chunk]:
    """Return the chunks of a step over the parameters that have a gradient.

    Args:
        groups: Complete parameter groups.
        chunk_numel: Entries of one chunk, by default what suits the device; a larger parameter is its own chunk.
        away: Parameters to leave out, by the identity of their group and their position there.

    Returns:
        Chunks, group by group; in each, parameters with equal matrices stand together.
    """
    chunks: list[Chunk] = []
    for group in groups:
        members = [
            _Slot.of(group, index)
            for index, parameter in enumerate(group["params"])
            if parameter.grad is not None and parameter.numel() and (id(group), index) not in away
        ]
        members.sort(key=lambda member: (member.place, member.shapes, member.tall))
        chunks += _cut(group, members, chunk_numel)
    return chunks


def lies_as_stored(device: str) -> bool:
    """Return whether turned matrices have stacks of their own, in the order in which they are stored.

    A GPU multiplies both orders alike, and needs no transposition then. A CPU wants few stacks.
    """
    return device != "cpu"


def chunk_limit(device: str) -> int:
    """Return the entries of one chunk on a type of device."""
    return CHUNK_NUMEL.get(device, LARGE_CHUNK_NUMEL)


@dataclass(frozen=True)
class _Slot:
    """A parameter of a group, as it is sorted into chunks."""

    index: int
    parameter: Tensor
    place: tuple[str, int, str]  # device and dtype
    shapes: tuple[tuple[int, ...], ...]
    tall: tuple[bool, ...]  # which of its matrices lie apart

    @classmethod
    def of(cls, group: Group, index: int) -> _Slot:
        parameter = group["params"][index]
        device = parameter.device
        place = (device.type, device.index or 0, str(parameter.dtype))  # in the same order on all ranks
        views = views_of(group, index)
        sides = [sorted(view.matrix[1:]) for view in views]
        apart = lies_as_stored(device.type)
        tall = [apart and view.matrix[1] > view.matrix[2] for view in views]
        return cls(index, parameter, place, tuple(map(tuple, sides)), tuple(tall))


def _cut(group: Group, members: list[_Slot], chunk_numel: int | None) -> list[Chunk]:
    """Cut sorted members into chunks of one device and dtype and bounded size."""
    chunks: list[Chunk] = []
    place = None
    held = 0
    for member in members:
        size = member.parameter.numel()
        limit = chunk_numel or chunk_limit(member.parameter.device.type)
        if member.place != place or held + size > limit:
            chunks.append(Chunk(group, [], []))
            place = member.place
            held = 0
        chunks[-1].indices.append(member.index)
        held += size
    for chunk in chunks:
        chunk.factored = [factored_of(group, index) for index in chunk.indices]
        if NORMS[group["norm"]].stacks:
            chunk.stacks = stacks_of(group, [views_of(group, index) for index in chunk.indices])
    return chunks


def stacks_of(group: Group, members: Sequence[tuple[MatrixView, ...]]) -> list[Stack]:
    """Lay matrices out in stacks, merging transposes if the norm allows.

    Args:
        group: A complete group.
        members: The matrices of each parameter.

    Returns:
        The stacks.
    """
    turns = NORMS[group["norm"]].turns
    apart = turns and lies_as_stored(group["params"][0].device.type)
    stacks: dict[tuple[int, int, bool], Stack] = {}
    for member, views in enumerate(members):
        for number, view in enumerate(views):
            batch, rows, columns = view.matrix
            transposed = turns and rows > columns
            if transposed:
                rows, columns = columns, rows
            as_stored = transposed and apart
            stack = stacks.setdefault((rows, columns, as_stored), Stack((rows, columns), transposed=as_stored))
            slot = Slot(
                member=member,
                view=view,
                whole=len(views) == 1 and view.is_plain,
                transposed=transposed,
                start=stack.count,
                stop=stack.count + batch,
                index=number,
                as_stored=as_stored,
            )
            stack.slots.append(slot)
            stack.count = slot.stop
    return list(stacks.values())


def stack_views(stack: Stack, tensors: Sequence[Tensor], buffer: Tensor, workspace: Workspace | None = None) -> None:
    """Copy the matrices of parameter-shaped tensors into a stack's buffer `(count, rows, columns)`."""
    targets = stack.places(buffer, tensors, workspace or Workspace())
    sources = [slot.source(tensors[slot.member], buffer.dtype) for slot in stack.slots]
    torch._foreach_copy_(targets, sources)
