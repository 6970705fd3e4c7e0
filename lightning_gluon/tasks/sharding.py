"""Weights cut over ranks by FSDP2, under Lightning's `ModelParallelStrategy`."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed import get_world_size
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

__all__ = ["repeated_layers", "shard"]


def shard(module: LightningModule, copies: int = 1, reshard_after_forward: bool = True) -> bool:
    """Cut the weights of a module over the ranks, if its Trainer's strategy asks for it.

    Every repeated layer is a group that is gathered and freed by itself. The rest is one group, so that a table that is
    tied to the head stays one tensor.

    Args:
        module: The module, in `configure_model`.
        copies: Copies of the weights. With 1 every rank holds a part of its own; with more, as many parts of the ranks
            hold the same (HSDP).
        reshard_after_forward: Whether layers free the parts of the others between the forward and the backward pass.

    Returns:
        Whether it is sharded now and was not before.

    Raises:
        ValueError: If the ranks cannot hold so many copies.

    Example:
        >>> shard(LightningModule())  # without a strategy that shards
        False
    """
    if module.device_mesh is None or isinstance(module, FSDPModule):  # Lightning calls the hook more than once
        return False
    mesh = module.device_mesh["data_parallel"]
    if copies > 1:
        mesh = _mesh_with_copies(mesh.device_type, mesh.size(), copies)
    for layer in repeated_layers(module):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
    return True


def _mesh_with_copies(device: str, ranks: int, copies: int) -> DeviceMesh:
    if ranks % copies or ranks != get_world_size():
        raise ValueError(
            f"Expected `copies` to divide the {get_world_size()} ranks, with tensor_parallel_size=1, but got "
            f"copies={copies} and {ranks} data-parallel ranks."
        )
    return init_device_mesh(device, (copies, ranks // copies), mesh_dim_names=("copies", "parts"))


def repeated_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that a network repeats: the children of a list that are all of one type.

    Args:
        module: A network.

    Example:
        >>> blocks = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)])
        >>> len(list(repeated_layers(nn.Sequential(nn.Linear(2, 2), blocks))))
        3
    """
    children = list(module.children())
    kinds = {type(child) for child in children}
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1 and len(kinds) == 1:
        yield from children
        return
    for child in children:
        yield from repeated_layers(child)
