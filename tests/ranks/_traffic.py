"""Count what a step sends: collectives by kind, bytes of this rank, and gathers of whole DTensors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Collectives inside, as the dispatcher sees them.

    Attributes:
        calls: Collectives by name.
        bytes: Bytes that this rank hands to others, by name: of an all-gather its own part once per other rank.
        gathers: Calls of `DTensor.full_tensor`.
        largest: Bytes of the largest plain tensor that was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.gathers = 0
        self.largest = 0

    def __enter__(self) -> Any:
        self._full_tensor = DTensor.full_tensor

        def full_tensor(tensor: DTensor, **given: Any) -> Tensor:
            self.gathers += 1
            return self._full_tensor(tensor, **given)

        DTensor.full_tensor = full_tensor  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        DTensor.full_tensor = self._full_tensor  # type: ignore[method-assign]
        super().__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._opname
            if not name.startswith("wait"):
                self.calls[name] += 1
                self.bytes[name] += _sent(name, args)
        found = func(*args, **(kwargs or {}))
        made = [leaf.nbytes for leaf in tree_leaves(found) if type(leaf) is Tensor]
        self.largest = max(self.largest, *made, 0)
        return found


def _sent(name: str, args: tuple[Any, ...]) -> int:
    """Return the bytes that go to other ranks."""
    tensors = [leaf for leaf in tree_leaves(args[:2]) if isinstance(leaf, Tensor)]
    group = next((one for one in args if isinstance(one, torch.ScriptObject)), None)
    size = group.size() if group is not None and hasattr(group, "size") else torch.distributed.get_world_size()
    if name == "alltoall_base_":
        sizes = args[4] or [1] * size  # without sizes all parts are equal
        own = sizes[torch.distributed.get_rank() % len(sizes)]
        return round(tensors[1].nbytes * (1 - own / max(1, sum(sizes))))
    if name == "_allgather_base_":
        return tensors[1].nbytes * (size - 1)
    if name == "allreduce_":
        return sum(tensor.nbytes for tensor in tensors) * 2 * (size - 1) // size
    return sum(tensor.nbytes for tensor in tensors)
