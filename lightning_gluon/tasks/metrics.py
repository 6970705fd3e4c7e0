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

        perplexity = exp(sum_i n_i loss_i / sum_i n_i)

    with the mean loss `loss_i` (nats) of `n_i` tokens.

    Shapes: scalars.

    The sums are float32 whatever the model is: in bfloat16 a count stops growing after a few hundred batches. A loss
    that is not a number makes a perplexity that is not.

    References:
        F. Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition tasks", 1977.

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
        """Add the mean loss of some tokens.

        Args:
            loss: Mean cross-entropy, in nats.
            weight: Number of tokens.
        """
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
    """Return the number of images, sequences or prompts in a batch, for Lightning's `ThroughputMonitor`.

        samples = len(batch)

    Args:
        batch: Images with labels, tokens of shape `(samples, length + 1)`, or a mapping with `input_ids` or `prompts`.

    Returns:
        A number.

    References:
        `batch_size_fn` of Lightning's `ThroughputMonitor`.

    Example:
        >>> count_samples(torch.zeros(4, 9))
        4
    """
    return len(_first_part(batch))


def count_items(batch: Any) -> int:
    """Return the number of images, prompts or predicted tokens in a batch, for Lightning's `ThroughputMonitor`.

        items = samples * length    for tokens, else samples

    Args:
        batch: Images with labels, tokens of shape `(samples, length + 1)`, or a mapping with `input_ids` or `prompts`.

    Returns:
        A number.

    References:
        `length_fn` of Lightning's `ThroughputMonitor`.

    Example:
        >>> count_items(torch.zeros(4, 9))
        32
    """
    samples = _first_part(batch)
    if isinstance(samples, Tensor) and samples.ndim == 2:
        return samples.shape[0] * (samples.shape[1] - 1)
    return len(samples)


def _first_part(batch: Any) -> Tensor | list[str]:
    """Return the images, tokens or prompts of a batch."""
    if isinstance(batch, (tuple, list)):
        images, *_ = batch
        return images
    if isinstance(batch, Mapping):
        return batch.get("input_ids", batch.get("prompts"))
    return batch
