"""Metrics beside the loss, and counts of samples and tokens for the throughput."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Perplexity", "count_items", "count_samples"]


class Perplexity(Metric):
    """`exp` of the mean cross-entropy over all tokens of an epoch (not the mean of the batches' perplexities).

    The sums are float32 whatever the model is: in bfloat16 a count stops growing after a few hundred batches. A loss
    that is not a number makes a perplexity that is not.

    Example:
        >>> metric = Perplexity()
        >>> metric.update(torch.tensor(2.0).log(), weight=3)
        >>> metric.update(torch.tensor(2.0).log(), weight=1)
        >>> round(metric.compute().item(), 4)
        2.0
    """

    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "tokens"):
            zero = torch.zeros((), dtype=torch.float32)
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: int) -> None:
        """Add the mean loss of `weight` tokens."""
        nats = weight * loss.detach().float()
        self.total = self.total.float() + nats
        self.tokens = self.tokens.float() + weight

    def compute(self) -> Tensor:
        """Return the perplexity of everything seen since the last reset."""
        return torch.exp(self.total / self.tokens)


def count_samples(batch: Any) -> int:
    """Return the number of images or sequences in a batch, for Lightning's `ThroughputMonitor`."""
    if isinstance(batch, (tuple, list)):
        images, *_ = batch
        return len(images)
    return len(batch)


def count_items(batch: Any) -> int:
    """Return the number of images or predicted tokens in a batch, for Lightning's `ThroughputMonitor`."""
    samples = count_samples(batch)
    if isinstance(batch, (tuple, list)):
        return samples
    predictions = batch.shape[1] - 1
    return samples * predictions
