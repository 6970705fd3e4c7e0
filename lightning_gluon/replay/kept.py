"""One iterate, kept for one step: its weights, its gradients, and those of the next step's sample there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.window import by_name, by_parameter

Gradients: TypeAlias = dict[Tensor, Tensor]
SAVED_KEYS = {"wanted", "again", "weights", "gradients"}


@dataclass
class Kept:
    """One iterate, kept until the next step's gradients are there.

    Args:
        wanted: Parameters that somebody will ask for.
        weights: Copies of the weights; none of those whose previous values the optimizer keeps.
        gradients: Copies of the gradients.
        again: Whether the next step's micro-batches are run here too.
        old: Their gradients here, summed over the window.
        new: Their gradients at the next iterate, if `.grad` is taken elsewhere.
        whole: Whether the sums hold the window's first micro-batch.
    """

    wanted: dict[Tensor, None] = field(default_factory=dict)
    weights: Gradients = field(default_factory=dict)
    gradients: Gradients = field(default_factory=dict)
    again: bool = False
    old: Gradients = field(default_factory=dict)
    new: Gradients = field(default_factory=dict)
    whole: bool = False

    @torch.no_grad()
    def keep(self, wanted: Iterable[Tensor], copied: Iterable[Tensor]) -> None:
        """Copy the rest."""
        for parameter in wanted:
            self.wanted[parameter] = None
            gradient = parameter.grad
            if gradient is not None and parameter not in self.gradients:
                self.gradients[parameter] = gradient.detach().clone()
        for parameter in copied:
            if parameter not in self.weights:
                self.weights[parameter] = parameter.detach().clone()

    def begin(self) -> None:
        """Begin the window of the next step."""
        self.old = {}
        self.new = {}
        self.whole = True

    def complete(self, scale: float) -> None:
        """End the window: take the loss scale out of the sums, or drop them if its beginning was not seen."""
        if not self.whole:
            self.old = {}
            self.new = {}
        unscale_(list(self.old.values()), scale)
        unscale_(list(self.new.values()), scale)

    def saved(self, optimizer: Gluon) -> dict[str, Any]:
        """Return the content of a checkpoint: names and copies of tensors, by parameter name."""
        layers = optimizer.layers()
        return {
            "wanted": [layer.name for layer in layers if layer.parameter in self.wanted],
            "again": self.again,
            "weights": _copies(optimizer, self.weights),
            "gradients": _copies(optimizer, self.gradients),
        }

    @classmethod
    def load(cls, optimizer: Gluon, saved: Any) -> Kept:
        """Return the iterate that a checkpoint holds.

        Args:
            optimizer: The optimizer.
            saved: Result of `saved`.

        Returns:
            The iterate.

        Raises:
            ValueError: If something is missing, or has not the shape of its parameter.
        """
        whole = isinstance(saved, Mapping) and saved.keys() >= SAVED_KEYS
        if not whole:
            raise ValueError(
                f"Expected `kept` in the saved state of the optimizer to hold {', '.join(sorted(SAVED_KEYS))}, but "
                "something is missing: the checkpoint is damaged."
            )
        kept = cls(again=bool(saved["again"]))
        kept.weights = by_parameter(optimizer, saved["weights"])
        kept.gradients = by_parameter(optimizer, saved["gradients"])
        for layer in optimizer.layers():
            if layer.name in saved["wanted"]:
                kept.wanted[layer.parameter] = None
        return kept


def _copies(optimizer: Gluon, tensors: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
    named = by_name(optimizer, tensors)
    return {name: tensor.clone() for name, tensor in named.items()}


def unscale_(gradients: list[Tensor], scale: float) -> None:
    """Take the loss scale out of gradients."""
    if scale != 1.0 and gradients:
        torch._foreach_mul_(gradients, 1 / scale)


def show_overflow_(references: Mapping[Tensor, Tensor]) -> None:
    """Add 0 times the second gradient to the main one, so that the loss scaler sees an overflow in either."""
    gradients, others = [], []
    for parameter, reference in references.items():
        if parameter.grad is not None:
            gradients.append(parameter.grad)
            others.append(reference)
    torch._foreach_add_(gradients, others, alpha=0.0)
