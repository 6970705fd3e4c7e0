"""What Muon-MVR's theory asks of decay and radius: refused, warned about, or silent."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon


def layer(spectral: float) -> nn.Module:
    """A square layer of a given spectral norm, which is also its norm under every scaling of square matrices."""
    linear = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(spectral * torch.eye(4))
    return linear


def build(model: nn.Module, **options: float) -> Gluon:
    groups = [{"params": list(model.named_parameters()), "role": "hidden"}]
    return Gluon(groups, **{"lr": 0.1, "method": "muon-mvr", "momentum": 0.9, **options})


def test_decay_faster_than_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected 1 - momentum >= lr \* weight_decay .* 0\.1 < 0\.11 for 'weight'"):
        build(layer(0.1), weight_decay=1.1)
    build(layer(0.1), weight_decay=0.9)


def test_weights_outside_the_ball_are_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"radius >= weight_decay \* \|\|X_0\|\|.*'weight' \(radius 1, needed 1\.5\)"):
        build(layer(3.0), weight_decay=0.5)


def test_conditions_that_hold_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(layer(1.9), weight_decay=0.5)
        build(layer(100.0))  # no decay, no ball
        Gluon(layer(100.0), lr=0.1, method="gluon", weight_decay=0.5, momentum=0.99)  # other methods promise nothing
