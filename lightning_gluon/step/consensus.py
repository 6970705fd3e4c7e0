"""Numbers that the ranks of a run bring together before a step, so that all of them decide alike.

A rank that raises, skips or steps other parameters than the others would leave them waiting in a collective. So every
norm is that of the whole gradient. A slot per parameter says how many ranks have a gradient of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gluon.ranks.pieces import local
from lightning_gluon.step.plan import chunk_limit
from lightning_gluon.step.world import World

RANKS_DIFFER = (
    "Rank {rank} has other parameters than the first rank, such as {name}. Build the optimizer from the same model, "
    "with the same parameters frozen and the same options, on every rank."
)


class Consensus:
    """Decisions of all ranks of a run.

    Args:
        world: The parameters on the ranks.
    """

    def __init__(
        self,
        world: World,
    ) -> None:
        self.ranks, self.groups = world.everyone, world.groups
        params: list[Tensor] = []
        self.names: list[str] = []
        for group in world.groups:
            params += group["params"]
            self.names += group["param_names"]
        self.places = {parameter: place for place, parameter in enumerate(params)}
        self.device = local(params[0]).device
        # How many ranks count the same entry.
        copies = [self.ranks.size / world.layouts[parameter].shards.size for parameter in params]
        self.copies = torch.tensor(copies, dtype=torch.float64, device=self.device)

    def check(self) -> None:
        """Raise on every rank unless all have the same parameters, in the same groups.

        Raises:
            RuntimeError: If they differ.
        """
        own = self._description()
        text = "\n".join(own)
        digest = hashlib.sha256(text.encode()).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(self.device)
        found = torch.empty(self.ranks.size * len(mine), dtype=torch.uint8, device=self.device)
        dist.all_gather_into_tensor(found, mine, group=self.ranks.group)
        rows = found.view(self.ranks.size, -1)
        if bool((rows == rows[0]).all()):
            return
        every: list[list[str]] = [[]] * self.ranks.size
        dist.all_gather_object(every, own, group=self.ranks.group)
        first = every[0]
        for rank, other in enumerate(every):
            if other == first:
                continue
            moved = [one for one, two in zip(other, first, strict=False) if one != two]
            differing = sorted(set(other) ^ set(first)) or moved  # the same ones, in another order
            raise RuntimeError(RANKS_DIFFER.format(rank=rank, name=differing[0]))

    def _description(self) -> list[str]:
        found = [f"chunks of {chunk_limit(self.device.type)}"]
        for group in self.groups:
            kind = f"{group['norm']}, {group['estimator']}"
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                found.append(f"{name!r} {tuple(parameter.shape)} {parameter.dtype} ({kind})")
        return found

    def where(
        self,
        params: Sequence[Tensor],
    ) -> Tensor:
        """Return the slots of parameters."""
        return torch.tensor([self.places[parameter] for parameter in params], dtype=torch.long, device=self.device)

    def whole_norms(
        self,
        norms: Tensor,
        where: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the norms of whole gradients, and how many ranks have a gradient of each parameter of the optimizer.

        Args:
            norms: Norms of this rank's pieces, one row per point where gradients were taken.
            where: Slots of their parameters.
        """
        points = len(norms)
        # As long for two points as for one: a rank without gradients does not know which it is.
        table = torch.zeros(3, len(self.names), dtype=torch.float64, device=self.device)
        counts, squares = table[0], table[1 : points + 1]
        counts[where] = 1.0
        squares[:, where] = norms.double().square() / self.copies[where]
        dist.all_reduce(table, group=self.ranks.group)
        whole = squares[:, where].sqrt()
        return whole.to(norms.dtype), counts

    def whole_sums(
        self,
        sums: Tensor,
        where: Tensor,
    ) -> Tensor:
        """Return sums over whole tensors.

        Args:
            sums: Sums over this rank's pieces, in fp64.
            where: Slots of their parameters.
        """
        counted = self.copies[where]
        total = sums / counted
        dist.all_reduce(total, group=self.ranks.group)
        return total

    def check_none(self) -> None:
        """Raise if other ranks have gradients, on a rank that has none."""
        none = torch.zeros(1, 0, device=self.device)
        _, counts = self.whole_norms(none, self.where([]))
        self.check_counts(counts)

    def check_counts(
        self,
        counts: Tensor,
    ) -> None:
        """Raise on every rank if a parameter has a gradient on some of them only.

        Args:
            counts: Ranks that have a gradient of each parameter.

        Raises:
            RuntimeError: If there is such a parameter.
        """
        some = []
        for name, count in zip(self.names, counts.tolist(), strict=True):
            if 0 < count < self.ranks.size:
                some.append(f"{name!r} ({int(count)})")
        if not some:
            return
        listed = ", ".join(some[:3])
        if len(some) > len(some[:3]):
            listed += f" and {len(some) - 3} more"
        raise RuntimeError(
            f"Some of the {self.ranks.size} ranks have a gradient and others have none: {listed}. No weight and no "
            "state was changed. Add zero times its output to the loss of ranks that leave a parameter idle."
        )

    def anywhere(
        self,
        flags: Sequence[bool],
        where: Tensor,
    ) -> list[bool]:
        """Return which flags are true on some rank.

        Args:
            flags: One per parameter of the plan.
            where: Slots of these parameters.
        """
        table = torch.zeros(len(self.names), device=self.device)
        table[where] = torch.tensor(flags, dtype=table.dtype, device=self.device)
        dist.all_reduce(table, group=self.ranks.group)
        return (table[where] > 0).tolist()
