"""Groups of ranks: process groups with this rank's place in them, along the dimensions of device meshes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Ranks:
    """Ranks that communicate.

    Args:
        group: Their process group; `None` for one rank alone.
        size: Their number.
        place: This rank among them.
    """

    group: ProcessGroup | None = None
    size: int = 1
    place: int = 0

    @classmethod
    def of(
        cls,
        group: ProcessGroup | None,
    ) -> Ranks:
        """Return the ranks of a process group; one rank is alone."""
        if group is None or dist.get_world_size(group) == 1:
            return ONE_RANK
        return cls(group, dist.get_world_size(group), dist.get_rank(group))

    @property
    def members(self) -> list[int]:
        """Their numbers in the whole run, in the order of their places."""
        if self.group is None:
            return [dist.get_rank() if dist.is_initialized() else 0]
        return list(dist.get_process_group_ranks(self.group))


ONE_RANK = Ranks()


class MeshGroups:
    """Process groups over several dimensions of meshes, each made once, on all of its ranks."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], ProcessGroup | None] = {}

    def along(
        self,
        mesh: DeviceMesh,
        dims: Sequence[int],
    ) -> Ranks:
        """Return the ranks that differ from this one in some dimensions of a mesh only.

        Args:
            mesh: The mesh.
            dims: The dimensions.
        """
        dims = [dim for dim in dims if mesh.size(dim) > 1]
        if not dims:
            return ONE_RANK
        if len(dims) == 1:
            return Ranks.of(mesh.get_group(dims[0]))
        here = mesh.get_coordinate()
        assert here is not None  # a rank outside of the mesh holds no parameter of it
        index = tuple(slice(None) if dim in dims else place for dim, place in enumerate(here))
        members = tuple(sorted(mesh.mesh[index].flatten().tolist()))
        if members not in self._made:
            self._made[members] = _group_of(members)
        return Ranks.of(self._made[members])


def _group_of(
    members: tuple[int, ...],
) -> ProcessGroup | None:
    if len(members) == dist.get_world_size():
        return dist.group.WORLD
    made = dist.new_group(list(members), use_local_synchronization=True)
    return None if isinstance(made, int) else made  # an integer stands for ranks outside
