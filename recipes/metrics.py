"""What the recipes measure beside the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

__all__ = ["Perplexity", "count_items", "count_samples"]


class Perplexity(MeanMetric):
    """`exp` of the mean cross-entropy over all tokens of an epoch (not the mean of the batches' perplexities).

    Example:
        >>> metric = Perplexity()
        >>> metric.update(torch.tensor(2.0).log(), weight=3)
        >>> metric.update(torch.tensor(2.0).log(), weight=1)
        >>> round(metric.compute().item(), 4)
        2.0
    """

    def compute(self) -> Tensor:
        """Return the perplexity of everything seen since the last reset."""
        return torch.exp(super().compute())


def count_samples(batch: Any) -> int:
    """Return the number of images or sequences in a batch, for Lightning's `ThroughputMonitor`."""
    return len(batch[0]) if isinstance(batch, (tuple, list)) else len(batch)


def count_items(batch: Any) -> int:
    """Return the number of images or predicted tokens in a batch, for Lightning's `ThroughputMonitor`."""
    return len(batch[0]) if isinstance(batch, (tuple, list)) else len(batch) * (batch.shape[1] - 1)
