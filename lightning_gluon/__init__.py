"""LMO optimizers (Gluon, Gluon-MVR, LiMuon, Muon, Scion) for PyTorch Lightning.

One line in `configure_optimizers` routes every parameter by what its layer is and does, and trains it:

    return lightning_gluon.configure_optimizers(self, method="gluon", lr=0.02)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_gluon import norms
from lightning_gluon.estimators.recursions import Estimator, register_estimator
from lightning_gluon.methods import METHODS, Method, Rule, register_method
from lightning_gluon.norms.orthogonalize import orthogonalize
from lightning_gluon.norms.table import register_norm
from lightning_gluon.options import register_option
from lightning_gluon.partition import Partition, partition  # at once: the function has the name of its folder
from lightning_gluon.partition.routing import register_routing

if TYPE_CHECKING:
    from lightning_gluon import callbacks, smoothness, tasks, testing
    from lightning_gluon.configure import configure_optimizers, equivalent_learning_rates
    from lightning_gluon.estimators.messages import Exchange, run_workers
    from lightning_gluon.estimators.rank_exchange import RankExchange
    from lightning_gluon.optimizer import Gluon
    from lightning_gluon.radius import RadiusSchedule, Schedule
    from lightning_gluon.radius.rules import register_radius_rule

__version__ = "0.1.0.dev0"

# Imported on first use: modules that import lightning or are needed by few, and the modules of other names.
LAZY = ("callbacks", "smoothness", "tasks", "testing")
MODULE_OF = {
    "Exchange": "estimators.messages",
    "Gluon": "optimizer",
    "RadiusSchedule": "radius",
    "RankExchange": "estimators.rank_exchange",
    "Schedule": "radius",
    "configure_optimizers": "configure",
    "equivalent_learning_rates": "configure",
    "register_radius_rule": "radius.rules",
    "run_workers": "estimators.messages",
}

__all__ = [
    "METHODS",
    "Estimator",
    "Exchange",
    "Gluon",
    "Method",
    "Partition",
    "RadiusSchedule",
    "RankExchange",
    "Rule",
    "Schedule",
    "callbacks",
    "configure_optimizers",
    "equivalent_learning_rates",
    "norms",
    "orthogonalize",
    "partition",
    "register_estimator",
    "register_method",
    "register_norm",
    "register_option",
    "register_radius_rule",
    "register_routing",
    "run_workers",
    "smoothness",
    "tasks",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    if name in MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
