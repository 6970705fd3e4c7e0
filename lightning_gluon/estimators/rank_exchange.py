"""The exchange of messages between the ranks of a distributed run: each rank is a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gluon.estimators.messages import Exchange
from lightning_gluon.ranks.collectives import all_gather
from lightning_gluon.ranks.groups import Ranks
from lightning_gluon.ranks.packing import TensorForm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["RankExchange"]


class RankExchange(Exchange):
    """Exchange between the ranks of a process group, by one all-gather per message.

        gather(m_j) = [m_1, ..., m_N]        (N - 1) bytes leave a rank for every byte of its message

    Each `.grad` is the rank's own, so DDP must not average it: `lightning_gluon.step.workers.keep_own_gradients` is the
    communication hook for that. Under a Trainer `lightning_gluon.configure_optimizers` sees to both.

    Shapes: messages are lists of tensors of any shape and dtype, of the same shapes on every rank.

    Args:
        group: The process group; `None` is one rank alone.
        device: Where its ranks communicate: the CPU with gloo, this rank's GPU with NCCL.

    Attributes:
        sent: Bytes of this rank's messages so far.

    References:
        "EF21-Muon", arXiv 2510.00643.

    Example:
        >>> alone = RankExchange(None)
        >>> alone.gather([torch.ones(2)]), alone.failure(None), alone.on_first("own")
        ([[tensor([1., 1.])]], None, ['own'])
    """

    def __init__(self, group: ProcessGroup | None, device: torch.device | str = "cpu") -> None:
        self.ranks, self.device = Ranks.of(group), torch.device(device)
        super().__init__(self.ranks.place, self.ranks.size)

    def _gather(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        if self.size == 1:
            return [tensors]
        forms = [TensorForm.of(tensor) for tensor in tensors]
        return all_gather(self.ranks, tensors, [forms] * self.size, self.device).wait()

    def on_first(self, own: object) -> list[Any]:
        """Return what every rank has, on the first one, and nothing on the others.

        Args:
            own: What this rank has; it can be pickled.
        """
        if self.size == 1:
            return [own]
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(own, found, dst=self.ranks.members[0], group=self.ranks.group)
        return found or []

    def failure(self, error: str | None) -> str | None:
        """Return the first error of any rank, the same for all.

        Args:
            error: What this rank would raise, if anything.
        """
        if self.size == 1:
            return error
        failed = torch.tensor([float(error is not None)], device=self.device)
        dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=self.ranks.group)
        if not failed.item():
            return None
        found: list[str | None] = [None] * self.size
        dist.all_gather_object(found, error, group=self.ranks.group)
        return next(text for text in found if text is not None)
