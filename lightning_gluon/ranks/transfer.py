"""The exchange: pieces go to the owners of whole matrices, and what owners make of them comes back.

    collect    pieces -> owners               one all-to-all over the ranks that hold a parameter together, and a note
    share      whole tensors -> pieces        one all-to-all back, and one all-gather over those that hold the same
    spread     owners' tensors -> all ranks   one all-gather over either

An owner is a slot `copy * shards + shard`. It collects from the ranks of its own copy alone, so no piece travels twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor

from lightning_gluon.ranks.collectives import Flight, all_gather, all_to_all
from lightning_gluon.ranks.groups import Ranks
from lightning_gluon.ranks.layout import Layout
from lightning_gluon.ranks.packing import TensorForm
from lightning_gluon.ranks.regions import Region

WholeTensors = dict[int, Tensor]  # by the index of the parcel
ListsByIndex = dict[int, list[Tensor]]


@dataclass(frozen=True)
class Parcel:
    """A tensor that travels.

    Args:
        layout: Its regions.
        owner: The slot that gets it whole.
    """

    layout: Layout
    owner: int


@dataclass
class Collection:
    """Tensors that have come.

    Args:
        whole: The whole tensors that this rank owns.
        notes: What every rank sent to all; empty if there was none.
    """

    whole: WholeTensors
    notes: list[Tensor]


class Transfer:
    """Parcels that travel together, over the same ranks.

    Args:
        parcels: The parcels, in the same order on all ranks.
        device: Where the ranks communicate.
    """

    def __init__(
        self,
        parcels: Sequence[Parcel],
        device: torch.device,
    ) -> None:
        one = parcels[0].layout
        self.parcels, self.device = parcels, device
        self.shards, self.copies = one.shards, one.copies
        self.mine = self._owned_by(one.shards.place)

    def _owned_by(
        self,
        shard: int,
        copy: int | None = None,
    ) -> list[int]:
        """Return the parcels of an owner, by default of one in this rank's own copy."""
        copy = self.copies.place if copy is None else copy
        slot = copy * self.shards.size + shard
        return [index for index, parcel in enumerate(self.parcels) if parcel.owner == slot]

    def _of_copy(
        self,
        copy: int,
    ) -> list[int]:
        """Return the parcels whose owners are in a copy, in the order of these owners."""
        return [index for shard in range(self.shards.size) for index in self._owned_by(shard, copy)]

    def collect(
        self,
        pieces: Sequence[Tensor],
        note: Tensor | None = None,
    ) -> Flight[Collection]:
        """Bring the pieces of every parcel together at its owner.

        Args:
            pieces: This rank's piece of every parcel.
            note: A tensor for every rank that holds the parcels, of one shape and dtype on all of them.

        Returns:
            Tensors that come here.
        """
        mine, shards = self.mine, range(self.shards.size)
        if self.shards.group is None:
            return Flight(lambda: Collection({index: pieces[index] for index in mine}, []))
        notes = [] if note is None else [note]
        sent = []
        forms = []
        for shard in shards:
            theirs = self._owned_by(shard)
            sent.append([pieces[index] for index in theirs] + notes)
            wanted = [TensorForm(self._region(index, shard).size, pieces[index].dtype) for index in mine]
            forms.append(wanted + [TensorForm.of(one) for one in notes])
        flight = all_to_all(self.shards, sent, forms, self.device)

        def join() -> Collection:
            parts = flight.wait()
            read = [part.pop() for part in parts] if notes else []
            whole: WholeTensors = {}
            targets = []
            for index in mine:
                shape = self.parcels[index].layout.shape
                whole[index] = torch.empty(shape, dtype=pieces[index].dtype, device=self.device)
            for shard in shards:
                targets += [self._region(index, shard).of(whole[index]) for index in mine]
            if targets:
                torch._foreach_copy_(targets, list(chain.from_iterable(parts)))
            return Collection(whole, read)

        return Flight(join)

    def _region(
        self,
        index: int,
        shard: int,
    ) -> Region:
        return self.parcels[index].layout.regions[shard]

    def share(
        self,
        whole: Mapping[int, Tensor],
        dtypes: Sequence[torch.dtype],
    ) -> Flight[list[Tensor]]:
        """Bring whole tensors back to the pieces of all ranks.

        Args:
            whole: Tensors of the parcels that this rank owns.
            dtypes: Dtype of every parcel's tensor.

        Returns:
            This rank's piece of every parcel.
        """
        forms = []
        for parcel, dtype in zip(self.parcels, dtypes, strict=True):
            forms.append(TensorForm(parcel.layout.own.size, dtype))
        here = self._to_shards(whole, forms)
        if self.copies.group is None:
            return Flight(lambda: _sorted_values(here.wait()))
        if self.shards.group is None:
            return self._to_copies(whole, forms)
        # The all-gather takes what the all-to-all brings, so it starts when somebody waits.
        return Flight(lambda: self._to_copies(here.wait(), forms).wait())

    def _to_shards(
        self,
        whole: Mapping[int, Tensor],
        forms: Sequence[TensorForm],
    ) -> Flight[WholeTensors]:
        """Bring the tensors that are owned in this copy to its ranks."""
        if self.shards.group is None:
            return Flight(lambda: dict(whole))
        sent = []
        lists = []
        wanted = []
        for shard in range(self.shards.size):
            theirs = self._owned_by(shard)
            sent.append([self._region(index, shard).of(whole[index]) for index in self.mine])
            lists.append(theirs)
            wanted.append([forms[index] for index in theirs])
        flight = all_to_all(self.shards, sent, wanted, self.device)
        return Flight(lambda: _by_index(lists, flight.wait()))

    def _to_copies(
        self,
        pieces: Mapping[int, Tensor],
        forms: Sequence[TensorForm],
    ) -> Flight[list[Tensor]]:
        """Bring the tensors that are owned in any copy to all of them."""
        lists = [self._of_copy(copy) for copy in range(self.copies.size)]
        own = [pieces[index] for index in lists[self.copies.place]]
        wanted = [[forms[index] for index in some] for some in lists]
        flight = all_gather(self.copies, own, wanted, self.device)
        return Flight(lambda: _sorted_values(_by_index(lists, flight.wait())))

    def spread(
        self,
        own: Mapping[int, Sequence[Tensor]],
        forms: Sequence[Sequence[TensorForm]],
    ) -> list[list[Tensor]]:
        """Give tensors of owners to all ranks, whole.

        Args:
            own: Tensors of every parcel that this rank owns.
            forms: Shapes and dtypes of those of every parcel.

        Returns:
            Tensors of every parcel.
        """
        found = {index: list(tensors) for index, tensors in own.items()}
        if self.shards.group is not None:
            lists = [self._owned_by(shard) for shard in range(self.shards.size)]
            found = self._gathered(self.shards, lists, found, forms)
        if self.copies.group is not None:
            lists = [self._of_copy(copy) for copy in range(self.copies.size)]
            found = self._gathered(self.copies, lists, found, forms)
        return [found[index] for index in range(len(forms))]

    def _gathered(
        self, ranks: Ranks, lists: list[list[int]], found: ListsByIndex, forms: Sequence[Sequence[TensorForm]]
    ) -> ListsByIndex:
        """Give each rank's share of some parcels to all ranks."""
        own: list[Tensor] = []
        for index in lists[ranks.place]:
            own += found[index]
        wanted: list[list[TensorForm]] = []
        for some in lists:
            wanted.append(list(chain.from_iterable(forms[index] for index in some)))
        rows = all_gather(ranks, own, wanted, self.device).wait()
        gathered: ListsByIndex = {}
        for some, row in zip(lists, rows, strict=True):
            tensors = iter(row)
            for index in some:
                gathered[index] = list(islice(tensors, len(forms[index])))
        return gathered


def _by_index(
    lists: Sequence[Sequence[int]],
    rows: Sequence[Sequence[Tensor]],
) -> WholeTensors:
    """Return tensors by the parcels that they are of, given those of every rank."""
    found: WholeTensors = {}
    for some, row in zip(lists, rows, strict=True):
        found.update(zip(some, row, strict=True))
    return found


def _sorted_values(
    found: Mapping[int, Tensor],
) -> list[Tensor]:
    return [found[index] for index in sorted(found)]
