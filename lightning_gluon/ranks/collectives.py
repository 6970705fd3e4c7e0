"""Collectives over lists of tensors: what each rank sends to each, and what all give to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gluon.ranks.groups import Ranks
from lightning_gluon.ranks.packing import TensorForm, tensors_in, total_room, write_packed

Delivered = TypeVar("Delivered")


@dataclass
class Flight(Generic[Delivered]):
    """Tensors under way.

    Args:
        deliver: Waits for them and returns them.
    """

    deliver: Callable[[], Delivered]

    def wait(self) -> Delivered:
        """Return the tensors once they have come; on a GPU its stream waits, not the host."""
        return self.deliver()


def all_to_all(
    ranks: Ranks, sent: Sequence[Sequence[Tensor]], forms: Sequence[Sequence[TensorForm]], device: torch.device
) -> Flight[list[list[Tensor]]]:
    """Send tensors to every rank, and receive some from every rank, in one collective.

    Args:
        ranks: The ranks.
        sent: Tensors for each of them.
        forms: Shapes and dtypes of those that come from each of them.
        device: Where the ranks communicate.

    Returns:
        Tensors from every rank.
    """
    outgoing = [total_room(map(TensorForm.of, tensors)) for tensors in sent]
    incoming = [total_room(some) for some in forms]
    data = torch.empty(sum(outgoing), dtype=torch.uint8, device=device)
    write_packed(data, [tensor for tensors in sent for tensor in tensors])
    found = torch.empty(sum(incoming), dtype=torch.uint8, device=device)
    work = dist.all_to_all_single(found, data, incoming, outgoing, group=ranks.group, async_op=True)

    def deliver() -> list[list[Tensor]]:
        _finish(work, data)
        return [tensors_in(part, some) for part, some in zip(found.split(incoming), forms, strict=True)]

    return Flight(deliver)


def all_gather(
    ranks: Ranks, own: Sequence[Tensor], forms: Sequence[Sequence[TensorForm]], device: torch.device
) -> Flight[list[list[Tensor]]]:
    """Give tensors to all ranks, in one collective that is as long for each as for the longest.

    Args:
        ranks: The ranks.
        own: Tensors of this rank.
        forms: Shapes and dtypes of those of every rank.
        device: Where the ranks communicate.

    Returns:
        Tensors of every rank.
    """
    width = max(total_room(some) for some in forms)
    if not width:  # as all ranks know
        return Flight(lambda: [tensors_in(torch.empty(0, dtype=torch.uint8, device=device), some) for some in forms])
    data = torch.zeros(width, dtype=torch.uint8, device=device)
    write_packed(data, own)
    found = torch.empty(width * ranks.size, dtype=torch.uint8, device=device)
    work = dist.all_gather_into_tensor(found, data, group=ranks.group, async_op=True)

    def deliver() -> list[list[Tensor]]:
        _finish(work, data)
        return [tensors_in(part, some) for part, some in zip(found.split(width), forms, strict=True)]

    return Flight(deliver)


def _finish(
    work: Any,
    data: Tensor,
) -> None:
    """Wait for a collective; until then its input must not be freed."""
    work.wait()
    del data
