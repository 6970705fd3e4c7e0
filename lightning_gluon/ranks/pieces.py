"""Pieces: tensors of the ranks of a mesh, seen as the plain tensors that this rank holds of them.

A piece shares storage with its `DTensor`. All arithmetic on entries runs on pieces alone: a list of DTensors beside
plain tensors, or on two meshes, is none that torch could work on, and some of its operations communicate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Return whether a tensor is spread over the ranks of a mesh."""
    loaded = sys.modules.get("torch.distributed.tensor")  # without it there are no DTensors
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the piece of a tensor that this rank holds; a plain tensor is its own piece."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def local_gradient(
    parameter: Tensor,
    gradient: Tensor,
) -> Tensor:
    """Return the piece of a gradient that belongs to this rank's piece of the parameter.

    A gradient may be laid out in another way: under sequence parallelism that of a norm is a sum over ranks, which is
    brought together here.
    """
    if is_sharded(parameter) and is_sharded(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)
    return local(gradient)


def wrap(
    piece: Tensor,
    parameter: Tensor,
) -> Tensor:
    """Return a piece as a tensor laid out like a parameter; of one with fewer columns those are whole.

    Args:
        piece: Of the size of the parameter's own piece, but for dimensions of length 1.
        parameter: The parameter; for a plain one the piece is the tensor.

    Returns:
        A tensor that shares storage with the piece.
    """
    if not is_sharded(parameter):
        return piece
    from torch.distributed.tensor import DTensor

    own = local(parameter).shape
    pairs = zip(piece.shape, own, parameter.shape, strict=True)
    shape = torch.Size([full if size == share else size for size, share, full in pairs])
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(piece, mesh, placements, run_check=False, shape=shape, stride=stride)


def spread_like(
    parameter: Tensor,
    whole: Tensor,
) -> Tensor:
    """Return a tensor that every rank has whole, laid out like a parameter; numbers and pieces are as they are."""
    if not is_sharded(parameter) or is_sharded(whole) or whole.ndim != parameter.ndim or whole.is_meta:
        return whole
    from torch.distributed.tensor import distribute_tensor

    own = whole.to(local(parameter).device)
    return distribute_tensor(own, parameter.device_mesh, parameter.placements, src_data_rank=None)


def meta_like(tensor: Tensor) -> Tensor:
    """Return a tensor on the meta device of the shape and dtype of a whole tensor."""
    if is_sharded(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def has_whole_rows(tensor: Tensor) -> bool:
    """Return whether every rank holds whole rows of a tensor, if any; a vector over several ranks is one row."""
    if not is_sharded(tensor):
        return True
    mesh = tensor.device_mesh
    cuts = [getattr(placement, "dim", None) for dim, placement in enumerate(tensor.placements) if mesh.size(dim) > 1]
    return all(cut is None or (cut == 0 and tensor.ndim > 1) for cut in cuts)


class PieceState(MutableMapping[str, Any]):
    """The state of a sharded parameter, read and written as pieces.

    Args:
        state: The state: tensors laid out like the parameter, and numbers.
        parameter: The parameter.
    """

    def __init__(
        self,
        state: MutableMapping[str, Any],
        parameter: Tensor,
    ) -> None:
        self.state, self.parameter = state, parameter

    def __getitem__(
        self,
        key: str,
    ) -> Any:
        """Return the piece of an entry."""
        return local(self.state[key])

    def __setitem__(
        self,
        key: str,
        value: Any,
    ) -> None:
        """Keep a piece; what is not laid out like the parameter is the same on all ranks, and kept plain."""
        alike = value.ndim == self.parameter.ndim > 0
        self.state[key] = wrap(value, self.parameter) if alike else value

    def __delitem__(
        self,
        key: str,
    ) -> None:
        """Forget an entry."""
        del self.state[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.state)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.state)


def piece_state(
    state: MutableMapping[str, Any],
    parameter: Tensor,
) -> MutableMapping[str, Any]:
    """Return the state of a parameter as pieces; that of a plain one is as it is."""
    return PieceState(state, parameter) if is_sharded(parameter) else state
