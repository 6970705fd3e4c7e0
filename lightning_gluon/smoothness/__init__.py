"""Layer-wise (L0, L1)-smoothness: measurements on a step, the fit, the pictures."""

from __future__ import annotations

from lightning_gluon.smoothness.fit import RunningFit, SmoothnessFit, fit, noise_only

__all__ = ["RunningFit", "SmoothnessFit", "fit", "noise_only"]
