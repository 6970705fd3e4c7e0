"""Layout of a parameter: which rank holds which region of it, and which ranks hold the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_gluon.ranks.groups import ONE_RANK, MeshGroups, Ranks
from lightning_gluon.ranks.pieces import is_sharded, local
from lightning_gluon.ranks.regions import MeshCut, Region, region_at

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement


@dataclass(frozen=True)
class Layout:
    """Places of a parameter's entries.

    Args:
        shape: Shape of the whole parameter.
        regions: Region of every rank of `shards`.
        shards: Ranks that hold the parameter together.
        copies: Ranks that hold the same region as this one.
        everyone: Both: all ranks that hold some of it.
    """

    shape: tuple[int, ...]
    regions: tuple[Region, ...]
    shards: Ranks = ONE_RANK
    copies: Ranks = ONE_RANK
    everyone: Ranks = ONE_RANK

    @property
    def own(self) -> Region:
        """The region of this rank."""
        return self.regions[self.shards.place]

    @property
    def cuts(self) -> set[int]:
        """Dimensions that are cut."""
        pairs = [(dim, region) for region in self.regions for dim in range(len(self.shape))]
        return {dim for dim, region in pairs if region.size[dim] != self.shape[dim]}

    @property
    def slots(self) -> int:
        """Number of ranks that may own the whole matrix."""
        return self.shards.size * self.copies.size


def layout_of(
    name: str,
    parameter: Tensor,
    groups: MeshGroups,
    data_parallel: Ranks = ONE_RANK,
) -> Layout:
    """Return the layout of a parameter.

    Args:
        name: Its name, for errors.
        parameter: The parameter.
        groups: Where process groups are kept.
        data_parallel: Ranks that hold the same plain parameters.

    Raises:
        NotImplementedError: If it is laid out in a way that is none of dense pieces.
    """
    shape = tuple(parameter.shape)
    if not is_sharded(parameter):
        return Layout(shape, (Region.whole(shape),), copies=data_parallel, everyone=data_parallel)
    mesh = parameter.device_mesh
    cuts = {dim: _read_cut(name, mesh, dim, placement) for dim, placement in enumerate(parameter.placements)}
    cutting = {dim: cut for dim, cut in cuts.items() if cut is not None}
    shards = groups.along(mesh, list(cutting))
    regions = []
    for rank in shards.members:
        place = _coordinates(mesh, rank)
        regions.append(region_at(shape, cutting.values(), [place[dim] for dim in cutting]))
    copies = groups.along(mesh, [dim for dim in cuts if dim not in cutting])
    layout = Layout(shape, tuple(regions), shards, copies, groups.along(mesh, range(mesh.ndim)))
    found = tuple(local(parameter).shape)
    if found != layout.own.size:
        raise NotImplementedError(
            f"The piece of {name!r} has shape {found}, but placements {parameter.placements} of shape {shape} should "
            f"give {layout.own.size}. Shard it with `fully_shard` or `parallelize_module` alone."
        )
    return layout


def _read_cut(
    name: str,
    mesh: DeviceMesh,
    dim: int,
    placement: Placement,
) -> MeshCut | None:
    """Return the cut along a dimension of a mesh; `None` if its ranks hold the same."""
    if placement.is_partial():
        raise NotImplementedError(
            f"{name!r} is a sum over ranks, with placement {placement}. Redistribute it to `Shard` or `Replicate`."
        )
    cut = getattr(placement, "dim", None)
    if cut is None or mesh.size(dim) == 1:
        return None
    return MeshCut(cut, mesh.size(dim), strided=hasattr(placement, "split_factor"))


def _coordinates(
    mesh: DeviceMesh,
    rank: int,
) -> list[int]:
    return (mesh.mesh == rank).nonzero()[0].tolist()
