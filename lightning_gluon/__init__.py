"""LMO optimizers (Gluon, Gluon-MVR, LiMuon, Muon, Scion) for PyTorch Lightning."""

from __future__ import annotations
