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


def local_gradient(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the piece of a gradient that belongs to this rank's piece of the parameter.

    A gradient may be laid out in another way: under sequence parallelism that of a norm is a sum over ranks, which is
    brought together here.
    """
    if is_sharded(parameter) and is_sharded(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)
    return local(gradient)


def wrap(piece: Tensor, parameter: Tensor) -> Tensor:
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


class PieceState(MutableMapping[str, Any]):
    """The state of a sharded parameter, read and written as pieces.

    Args:
        state: The state: tensors laid out like the parameter, and numbers.
        parameter: The parameter.
    """

    def __init__(self, state: MutableMapping[str, Any], parameter: Tensor) -> None:
        self.state, self.parameter = state, parameter

    def __getitem__(self, key: str) -> Any:
        """Return the piece of an entry."""
        return local(self.state[key])

    def __setitem__(self, key: str, value: Any) -> None:
        """Keep a piece; a number is the same on all ranks and kept plain."""
        self.state[key] = wrap(value, self.parameter) if value.ndim else value

    def __delitem__(self, key: str) -> None:
        """Forget an entry."""
        del self.state[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.state)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.state)


def piece_state(state: MutableMapping[str, Any], parameter: Tensor) -> MutableMapping[str, Any]:
    """Return the state of a parameter as pieces; that of a plain one is as it is."""
    return PieceState(state, parameter) if is_sharded(parameter) else state
