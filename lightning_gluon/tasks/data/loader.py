"""A data loader whose order is a function of (seed, epoch) and that continues where a checkpoint left it.

Lightning saves and restores the state of every loader that has `state_dict` and `load_state_dict`. It calls `iter()` on
the loader before it tells the sampler which epoch it is. The iterator below therefore starts its workers at the first
`next()`, when the epoch is known.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

__all__ = ["EpochSampler", "ResumableLoader", "default_seed"]

# A prime: `DistributedSampler` adds the epoch to the seed, and neighbouring seeds must not meet.
_SEED_STRIDE = 1_000_003
_DECIDED = ("sampler", "batch_sampler", "drop_last", "persistent_workers")  # workers start anew in every epoch


def default_seed(seed: int | None) -> int:
    """Return `seed`, or the one that `seed_everything` has set, or 0."""
    if seed is not None:
        return seed
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


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
        replicas, rank = 1, 0
        if dist.is_available() and dist.is_initialized():
            replicas, rank = dist.get_world_size(), dist.get_rank()
        super().__init__(dataset, replicas, rank, shuffle=shuffle, seed=seed * _SEED_STRIDE, drop_last=replicas > 1)
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        return iter(order[self.start :])


class ResumableLoader(DataLoader):
    """A `DataLoader` over an `EpochSampler` that can be resumed inside an epoch.

        order = permutation(seed, epoch)[done * batch_size :]

    Shapes: batches of any shape.

    The state is the epoch and the number of its batches that are done, so that it does not depend on the number of
    workers. A batch is done when it is handed out. Under a Trainer that `follow` names, it is done when the Trainer
    says so: a checkpoint that is written on an exception then counts the batch that failed as one to come.
    A dataset with a `set_epoch` method is told the epoch before the workers start: augmentation that is seeded by it
    comes out the same after a resume.

    Args:
        dataset: A dataset with a length.
        batch_size: Samples per batch and process.
        shuffle: Whether to permute the samples anew in every epoch.
        seed: Seed of the order.
        processed: Counts the batches of the current epoch that are done; None counts those handed out.
        **kwargs: Further arguments of `torch.utils.data.DataLoader`. What the loader decides itself, such as
            a sampler, is not heeded: Lightning's `overfit_batches` gives one when it turns `shuffle` off.

    Raises:
        ValueError: If the dataset cannot fill one batch.

    References:
        `torch.utils.data.DistributedSampler`, whose order it takes.

    Example:
        >>> loader = ResumableLoader(range(6), batch_size=2, shuffle=True, seed=0)
        >>> iterator = iter(loader)
        >>> first, state = next(iterator), loader.state_dict()
        >>> again = ResumableLoader(range(6), batch_size=2, shuffle=True, seed=0)
        >>> again.load_state_dict(state)
        >>> [b.tolist() for b in again] == [b.tolist() for b in iterator]
        True
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> loader.follow(trainer).processed()  # batches that the Trainer is done with
        0
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        processed: Callable[[], int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.order = sampler = EpochSampler(dataset, shuffle=shuffle, seed=seed)
        if len(sampler) < batch_size:
            raise ValueError(
                f"Expected at least one full batch of training data per process, but got {len(sampler)} samples for "
                f"batch_size={batch_size}. Lower `batch_size` or give more data."
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in _DECIDED}
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=True, **kwargs)
        self.processed = processed
        self._handed_out = 0
        self._begun: int | None = None  # the epoch of the last iteration
        self._resume: dict[str, int] | None = None

    def follow(self, trainer: Trainer) -> ResumableLoader:
        """Count what a Trainer has processed instead of what was handed out.

        The two differ while a batch is in the works. Lightning counts the batch that an exception ended as not
        processed and takes it again after a resume, so the loader has to give it again.

        Args:
            trainer: The Trainer that trains on this loader.

        Returns:
            The loader itself.
        """
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        self.processed = lambda: progress.current.processed
        return self

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self.order
        start = self._resumed_batches()
        self._resume = None
        self._handed_out = start
        self._begun = sampler.epoch
        sampler.start = start * (self.batch_size or 1)
        _tell_epoch(self.dataset, sampler.epoch)
        batches = super().__iter__()
        try:
            for batch in batches:
                self._handed_out += 1
                yield batch
        finally:
            sampler.start = 0
            if hasattr(batches, "_shutdown_workers"):
                batches._shutdown_workers()

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that are done."""
        return {"epoch": self.order.epoch, "batches": self._batches_done()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that `state` counts, in the epoch that it names.

        Args:
            state: What `state_dict` returned.
        """
        self._resume = dict(state)
        self.order.set_epoch(state["epoch"])

    def _batches_done(self) -> int:
        if self._resume is not None or self._begun != self.order.epoch:
            return self._resumed_batches()  # the epoch is announced, its first batch was not asked for yet
        if self.processed is None:
            return self._handed_out
        return min(self.processed(), self._handed_out)

    def _resumed_batches(self) -> int:
        if self._resume is None or self._resume["epoch"] != self.order.epoch:
            return 0
        return self._resume["batches"]


def _tell_epoch(dataset: Dataset[Any], epoch: int) -> None:
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
