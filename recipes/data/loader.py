"""A data loader whose order is a function of (seed, epoch) and that continues where a checkpoint left it.

Lightning saves and restores the state of every loader that has `state_dict` and `load_state_dict`. It calls `iter()` on
the loader before it tells the sampler which epoch it is; the iterator below therefore starts its workers at the first
`next()`, when the epoch is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

__all__ = ["EpochSampler", "ResumableLoader", "default_seed"]

_SEED_STRIDE = (
    1_000_003  # a prime: `DistributedSampler` adds the epoch to the seed, and neighbouring seeds must not meet
)
_OWN = ("sampler", "batch_sampler", "drop_last", "persistent_workers")  # workers start anew in every epoch


def default_seed(seed: int | None) -> int:
    """Return `seed`, or the one that `seed_everything` has set, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


class EpochSampler(DistributedSampler):
    """The order of an epoch as a function of (seed, epoch) alone, beginning at `start`.

    Args:
        dataset: A dataset with a length.
        shuffle: Whether to permute.
        seed: Same seed, same order, on any machine.

    Example:
        >>> sampler = EpochSampler(range(5), shuffle=True, seed=0)
        >>> first = list(sampler)
        >>> sampler.start = 2
        >>> list(sampler) == first[2:], sorted(first)
        (True, [0, 1, 2, 3, 4])
    """

    def __init__(self, dataset: Any, *, shuffle: bool, seed: int) -> None:
        ready = dist.is_available() and dist.is_initialized()
        replicas, rank = (dist.get_world_size(), dist.get_rank()) if ready else (1, 0)
        super().__init__(dataset, replicas, rank, shuffle=shuffle, seed=seed * _SEED_STRIDE, drop_last=replicas > 1)
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[self.start :])


class ResumableLoader(DataLoader):
    """A `DataLoader` over an `EpochSampler` that can be resumed inside an epoch.

    The state is the epoch and the number of batches handed out, so that it does not depend on the number of workers.
    A dataset with a `set_epoch` method is told the epoch before the workers start: augmentation that is seeded by it
    comes out the same after a resume.

    Args:
        dataset: A dataset with a length.
        batch_size: Samples per batch and process.
        shuffle: Whether to permute the samples anew in every epoch.
        seed: Seed of the order.
        **kwargs: Further arguments of `torch.utils.data.DataLoader`. What the loader decides itself, such as
            a sampler, is not heeded: Lightning's `overfit_batches` gives one when it turns `shuffle` off.

    Raises:
        ValueError: If the dataset cannot fill one batch.

    Example:
        >>> loader = ResumableLoader(range(6), batch_size=2, shuffle=True, seed=0)
        >>> iterator = iter(loader)
        >>> first, state = next(iterator), loader.state_dict()
        >>> again = ResumableLoader(range(6), batch_size=2, shuffle=True, seed=0)
        >>> again.load_state_dict(state)
        >>> [b.tolist() for b in again] == [b.tolist() for b in iterator]
        True
    """

    def __init__(self, dataset: Any, *, batch_size: int, shuffle: bool = True, seed: int = 0, **kwargs: Any) -> None:
        self.order = sampler = EpochSampler(dataset, shuffle=shuffle, seed=seed)
        if len(sampler) < batch_size:
            raise ValueError(
                f"Expected at least one full batch of training data per process, but got {len(sampler)} samples for "
                f"batch_size={batch_size}. Lower `batch_size` or give more data."
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in _OWN}
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=True, **kwargs)
        self._batches = 0
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self.order
        resume, self._resume = self._resume, None
        start = resume["batches"] if resume is not None and resume["epoch"] == sampler.epoch else 0
        sampler.start = start * (self.batch_size or 1)
        self._batches = start
        _tell_epoch(self.dataset, sampler.epoch)
        batches = super().__iter__()
        try:
            for batch in batches:
                self._batches += 1
                yield batch
        finally:
            sampler.start = 0
            if hasattr(batches, "_shutdown_workers"):
                batches._shutdown_workers()

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were handed out."""
        return {"epoch": self.order.epoch, "batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that `state` counts, in the epoch that it names.

        Args:
            state: What `state_dict` returned.
        """
        self._resume = dict(state)
        self._batches = state["batches"]
        self.order.set_epoch(state["epoch"])


def _tell_epoch(dataset: Dataset[Any], epoch: int) -> None:
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
