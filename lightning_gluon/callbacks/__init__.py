"""Lightning callbacks: the second gradient, smoothness, radii. Imported on first use, so the core stays light."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "VarianceReduction": "variance_reduction",
    "SmoothnessMonitor": "smoothness_monitor",
    "RadiusScheduler": "radius_scheduler",
    "GluonOptimizer": "gluon_optimizer",
    "QKClip": "qk_clip",
}

__all__ = ["GluonOptimizer", "QKClip", "RadiusScheduler", "SmoothnessMonitor", "VarianceReduction"]  # noqa: F822 - see __getattr__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
