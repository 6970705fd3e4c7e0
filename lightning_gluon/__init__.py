"""LMO optimizers (Gluon, Gluon-MVR, LiMuon, Muon, Scion) for PyTorch Lightning.

One line in `configure_optimizers` routes every parameter by what its layer is and does, and trains it:

    return lightning_gluon.configure_optimizers(self, method="gluon", lr=0.02)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_gluon import norms
from lightning_gluon.configure import configure_optimizers, equivalent_learning_rates
from lightning_gluon.methods import METHODS
from lightning_gluon.norms.orthogonalize import orthogonalize
from lightning_gluon.optimizer import Gluon
from lightning_gluon.partition import Partition, partition
from lightning_gluon.radius import RadiusSchedule, Schedule

if TYPE_CHECKING:
    from lightning_gluon import callbacks, smoothness

__version__ = "0.1.0.dev0"

__all__ = [
    "METHODS",
    "Gluon",
    "Partition",
    "RadiusSchedule",
    "Schedule",
    "callbacks",
    "configure_optimizers",
    "equivalent_learning_rates",
    "norms",
    "orthogonalize",
    "partition",
    "smoothness",
]


def __getattr__(name: str) -> Any:
    if name in ("callbacks", "smoothness"):  # these import lightning or are needed by few
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
