"""Commands of a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lightning_gluon.cli.fit import GluonCLI

QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
]


class Silent(BoringModel):
    """A module without `configure_optimizers`."""

    configure_optimizers = LightningModule.configure_optimizers


def boring(tmp_path: Path, *options: str, model: Any = Silent, **kwargs: Any) -> GluonCLI:
    """Run a command of a small model."""
    places = [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_checkpointing=false"]
    return GluonCLI(model, BoringDataModule, args=[*options, *QUIET, *places], **kwargs)


def fit_options(method: str = "gluon", lr: float = 0.02, steps: int = 3) -> list[str]:
    return ["fit", f"--optimizer.method={method}", f"--optimizer.lr={lr}", f"--trainer.max_steps={steps}"]
