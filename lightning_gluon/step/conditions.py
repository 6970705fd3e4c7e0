"""Conditions of Muon-MVR's theory on weight decay and radius, checked before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from lightning_gluon.norms.table import NORMS
from lightning_gluon.step.layers import Layer


def check_star_convex(layers: Iterable[Layer]) -> None:
    """Check the conditions under which Muon-MVR converges on star-convex functions, for every layer on an LMO.

        X <- (1 - beta) X - eta D(M),    alpha >= beta,    eta >= beta max(||X_0||, ||X_*||)

    alpha = `1 - momentum`, beta = `lr * weight_decay`, eta = `lr * radius`; the norm is the layer's own. `X_*` is
    unknown, so the second is checked at `X_0`: weights outside the ball of radius `radius / weight_decay` first shrink.

    Args:
        layers: The optimizer's layers, at their first iterate.

    Raises:
        ValueError: If alpha < beta in some layer.

    References:
        "Gluon-MVR", arXiv 2512.16598.

    Example:
        >>> import torch
        >>> from lightning_gluon import Gluon
        >>> check_star_convex(Gluon(torch.nn.Linear(2, 4), lr=0.02, weight_decay=0.1).layers())
    """
    small = []
    for layer in layers:
        group = layer.group
        moves = NORMS[group["norm"]].stacks and layer.parameter.numel()
        if not moves or not group["weight_decay"]:
            continue
        check_decay(layer)
        if not layer.parameter.is_meta:
            needed = group["weight_decay"] * layer.norm(layer.parameter.detach().float()).item()
            if layer.radius < needed:
                small.append(f"{layer.name!r} (radius {layer.radius:.3g}, needed {needed:.3g})")
    if small:
        listed = ", ".join(small[:3])
        if len(small) > 3:
            listed += f" and {len(small) - 3} more"
        warnings.warn(
            "Muon-MVR's theory asks for radius >= weight_decay * ||X_0||, which does not hold for "
            f"{listed}. Those weights first shrink into the ball. Lower `weight_decay` or raise "
            "the radius of their role.",
            stacklevel=3,
        )


def check_decay(layer: Layer) -> None:
    """Raise unless `1 - momentum >= lr * weight_decay`.

    Args:
        layer: The layer.

    Raises:
        ValueError: If the decay forgets faster than the momentum.
    """
    group = layer.group
    alpha, beta = 1 - group["momentum"], group["lr"] * group["weight_decay"]
    if alpha < beta:
        raise ValueError(
            f"Expected 1 - momentum >= lr * weight_decay for 'muon-mvr', but got {alpha:.3g} < {beta:.3g} for "
            f"{layer.name!r}. Lower `weight_decay`, `lr` or `momentum`."
        )
