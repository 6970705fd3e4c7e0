"""Batches of tokens: windows of a long text, or examples with labels and positions of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from torch import Tensor

__all__ = ["IGNORED", "Predictions", "TokenBatch", "read_batch"]

# The label of a token that the loss leaves out, as torch and transformers have it.
IGNORED = -100

# Tokens `(batch, length + 1)`, or a mapping with `input_ids`, `labels` and perhaps `position_ids`.
TokenBatch: TypeAlias = Tensor | Mapping[str, Tensor]


class Predictions(NamedTuple):
    """Inputs of a language model and its targets, one place apart; all of shape `(batch, length)`.

    Args:
        inputs: Tokens.
        targets: The token behind each, or `IGNORED`.
        positions: The place of each in its document; None counts from the left.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor | None = None


def read_batch(batch: TokenBatch) -> Predictions:
    """Return inputs and targets of a batch.

    Args:
        batch: Tokens, or a mapping in which `labels` stand at the place of their own token.

    Returns:
        Views of the batch.

    Example:
        >>> import torch
        >>> read_batch(torch.tensor([[1, 2, 3]])).targets.tolist()
        [[2, 3]]
    """
    if isinstance(batch, Tensor):
        return Predictions(batch[:, :-1], batch[:, 1:])
    positions = batch.get("position_ids")
    if positions is not None:
        positions = positions[:, :-1]
    return Predictions(batch["input_ids"][:, :-1], batch["labels"][:, 1:], positions)
