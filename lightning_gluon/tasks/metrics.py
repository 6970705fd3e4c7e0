"""Metrics beside the loss, and counts of samples and tokens for the throughput."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from lightning_gluon.tasks.loss import Score

__all__ = ["LanguageMetrics", "Perplexity", "count_items", "count_samples"]


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

    def update(self, loss: Tensor, weight: int | Tensor) -> None:
        """Add the mean loss of `weight` tokens."""
        nats = weight * loss.detach().float()
        self.total = self.total.float() + nats
        self.tokens = self.tokens.float() + weight

    def compute(self) -> Tensor:
        """Return the perplexity of everything seen since the last reset."""
        return torch.exp(self.total / self.tokens)


class LanguageMetrics(nn.Module):
    """Loss, perplexity and token accuracy over all counted tokens of an epoch.

    Example:
        >>> metrics = LanguageMetrics()
        >>> metrics.update(Score(torch.tensor(4.0).log() * 2, torch.tensor(2), torch.tensor(1)))
        >>> {name: round(metric.compute().item(), 4) for name, metric in metrics.named()}
        {'loss': 1.3863, 'perplexity': 4.0, 'token_accuracy': 0.5}
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.perplexity = Perplexity()
        self.token_accuracy = MeanMetric()

    def update(self, score: Score) -> None:
        """Add the sums of a batch."""
        count = score.tokens
        mean = score.nats / count
        hits = score.hits / count
        self.loss.update(mean, weight=count)
        self.perplexity.update(mean, weight=count)
        self.token_accuracy.update(hits, weight=count)

    def named(self) -> Iterator[tuple[str, Metric]]:
        """Yield the metrics with their names."""
        yield "loss", self.loss
        yield "perplexity", self.perplexity
        yield "token_accuracy", self.token_accuracy


def count_samples(batch: Any) -> int:
    """Return the number of images or sequences in a batch, for Lightning's `ThroughputMonitor`."""
    first, _ = _first_tensor(batch)
    return len(first)


def count_items(batch: Any) -> int:
    """Return the number of images or predicted tokens in a batch, for Lightning's `ThroughputMonitor`."""
    first, tokens = _first_tensor(batch)
    return len(first) * (first.shape[1] - 1 if tokens else 1)


def _first_tensor(batch: Any) -> tuple[Tensor, bool]:
    """Return the tensor of a batch, and whether it is one of tokens."""
    if isinstance(batch, (tuple, list)):
        images, *_ = batch
        return images, False
    if isinstance(batch, Mapping):
        return batch["input_ids"], True
    return batch, True
