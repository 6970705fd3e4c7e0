"""Norms, whose unit balls bound a step: each with its dual norm and its linear minimisation oracle (LMO).

For a norm `||.||` on a layer's weight and its dual `||G||_* = max_{||D|| <= 1} <G, D>`, the LMO returns the `D` that
attains the maximum. All norms are batched over leading dimensions, give zero for zero, and their `lmo` does not depend
on the scale of the input: there is no absolute epsilon anywhere.

| norm | `||X||`, X (m, n) | `D` | `||G||_*` |
|---|---|---|---|
| `Spectral` | `||X||_2 / s` | `s U V^T` | `s sum_i sigma_i(G)` |
| `SpectralConv` | the same on `(Cout, Cin k)` | `s U V^T` | the same |
| `Balanced` | as `Spectral` | `s U V^T`, rows or columns balanced: attains no dual norm | as `Spectral` |
| `GatedSpectral` | as `Spectral` | `s U V^T`, or `G` below the gate | as `Spectral` |
| `Sign` | `n max |X_ij|` | `sign(G) / n` | `sum |G_ij| / n` |
| `RowNorm` | `max_i ||X_i|| / s` | `s G_i / ||G_i||` | `s sum_i ||G_i||` |
| `ColumnNorm` | `max_j ||X_j|| / s` | `s G_j / ||G_j||` | `s sum_j ||G_j||` |
| `CentredRow` | as `RowNorm` | `RowNorm` around the mean row, the LMO up to shifts of all rows | as `RowNorm` |
| `ClippedRow` | `max_i max(rms(X_i), max_j |X_ij| / c) / r` | `r sign(G_ij) min(c, tau_i |G_ij|)` | `<G, D>` |
| `RMSVector` | `||x|| / sqrt(d)`, x (d) | `sqrt(d) g / ||g||` | `sqrt(d) ||g||` |
| `Euclidean` | `||X||_F` | `G / ||G||_F` | `||G||_F` |
| `Max` | `max |X_ij|` | `sign(G)` | `sum |G_ij|` |
"""

from __future__ import annotations

from lightning_gluon.norms.balanced import Balanced
from lightning_gluon.norms.base import Norm
from lightning_gluon.norms.clipped import ClippedRow
from lightning_gluon.norms.entries import Max, Sign
from lightning_gluon.norms.gated import GatedSpectral
from lightning_gluon.norms.slices import CentredRow, ColumnNorm, Euclidean, Identity, RMSVector, RowNorm
from lightning_gluon.norms.spectral import SCALINGS, Spectral, SpectralConv
from lightning_gluon.norms.table import NORMS, make_norm

__all__ = [
    "NORMS", "SCALINGS", "Balanced", "CentredRow", "ClippedRow", "ColumnNorm", "Euclidean", "GatedSpectral", "Identity",
    "Max", "Norm", "RMSVector", "RowNorm", "Sign", "Spectral", "SpectralConv", "make_norm",
]  # fmt: skip
