"""Cross-entropy of language models: of all logits at once, or of the output layer's in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lightning_gluon.tasks.batches import IGNORED

__all__ = ["Score", "chunked_loss", "score_chunks", "score_logits"]


class Score(NamedTuple):
    """Sums over the predictions of a batch, each a scalar.

    Args:
        nats: Cross-entropy.
        tokens: Predictions that count.
        hits: Those of them whose most likely token is right.
    """

    nats: Tensor
    tokens: Tensor
    hits: Tensor


def score_logits(logits: Tensor, targets: Tensor) -> Score:
    """Return the sums over some predictions.

    Args:
        logits: Of shape `(tokens, vocabulary)`.
        targets: Of shape `(tokens,)`, `IGNORED` for those that do not count.

    Returns:
        The sums.

    Example:
        >>> score_logits(torch.eye(3), torch.tensor([0, 2, IGNORED])).hits.item()
        1
    """
    nats = cross_entropy(logits.float(), targets, reduction="sum")
    hits = logits.argmax(-1) == targets
    return Score(nats, (targets != IGNORED).sum(), hits.sum())


def score_chunks(hidden: Tensor, head: nn.Module, targets: Tensor, size: int) -> Score:
    """Return the sums over some predictions, whose logits are made `size` tokens at a time."""
    parts = [score_logits(head(one), other) for one, other in _chunks(hidden, targets, size)]
    nats, tokens, hits = zip(*parts, strict=True)
    return Score(_add_up(nats), _add_up(tokens), _add_up(hits))


def _add_up(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def chunked_loss(hidden: Tensor, head: nn.Module, targets: Tensor, size: int) -> Tensor:
    """Return the mean cross-entropy without holding all logits.

    torch's `linear_cross_entropy` does it in float32 if this torch has it. Otherwise logits are made again in the
    backward pass.

    Args:
        hidden: Inputs of the output layer, of shape `(tokens, width)`.
        head: The output layer.
        targets: Of shape `(tokens,)`, `IGNORED` for those that do not count.
        size: Tokens whose logits are held at once.

    Returns:
        A scalar, in nats.

    Example:
        >>> head, hidden = nn.Linear(4, 8), torch.randn(6, 4)
        >>> targets = torch.tensor([1, 2, 3, IGNORED, 4, 5])
        >>> loss = chunked_loss(hidden, head, targets, size=2)
        >>> torch.testing.assert_close(loss, cross_entropy(head(hidden), targets))
    """
    if _fits_fused(hidden, head):
        return _fused_loss(hidden, head, targets, size)
    losses = []
    for one, other in _chunks(hidden, targets, size):
        losses.append(checkpoint(_chunk_loss, head, one, other, use_reentrant=False))
    counted = targets != IGNORED
    return _add_up(losses) / counted.sum()


def _chunks(hidden: Tensor, targets: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(hidden.split(size), targets.split(size), strict=True)


def _chunk_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(head(hidden).float(), targets, reduction="sum")


def _fits_fused(hidden: Tensor, head: nn.Module) -> bool:
    """Tell whether torch's fused loss may do it: hooks, shards and adapters of the layer are not its business.

    It returns a loss of the input's dtype. In bfloat16 that is wrong by up to .4 %, so it is for float32 alone.

    Returns:
        True if it may.
    """
    fused = hasattr(nn, "LinearCrossEntropyOptions") and not torch.is_autocast_enabled(hidden.device.type)
    plain = type(head) is nn.Linear and not head._forward_pre_hooks and not head._forward_hooks
    if not (fused and plain):
        return False
    weight = head.weight
    return type(weight) is nn.Parameter and weight.dtype is hidden.dtype is torch.float32


def _fused_loss(hidden: Tensor, head: Any, targets: Tensor, size: int) -> Tensor:
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=size)
    fused: Any = nn.functional.linear_cross_entropy
    return fused(hidden, head.weight, targets, linear_bias=head.bias, options=options)
