"""Does a smaller state train as well? The quickstart's ViT on digits, the same steps for every carry and reference.

All rows run the same recursion, `M <- c_new + b (M - c_old)`: they differ in how M is carried (dense, or factors of
rank r) and how the previous iterate is had (a copy, or rebuilt from the last step in 16 or 8 bits). Three seeds; the
learning rate is the quickstart's for Gluon, not tuned for any row.

    python -m benchmarks.limuon_parity --epochs 10
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from benchmarks.journal import Journal
from examples.quickstart import DigitsViT
from lightning_gluon.tasks import ImageData

ROWS: dict[str, dict[str, Any]] = {
    "gluon": {"method": "gluon"},
    "gluon-mvr1, copy": {"method": "gluon-mvr1"},
    "full, step": {"method": "limuon", "reference": "step"},
    "full, step8": {"method": "limuon", "reference": "step8"},
    "r=16, copy": {"method": "limuon", "rank": 16},
    "r=16, step": {"method": "limuon", "rank": 16, "reference": "step"},
    "r=16, step8": {"method": "limuon", "rank": 16, "reference": "step8"},
    "r=16, step8, fold bf16": {"method": "limuon", "rank": 16, "reference": "step8", "fold": "bfloat16"},
    "r=16, paper's sketch": {"method": "limuon", "rank": 16, "power_iterations": 0, "oversampling": 2},
    "r=8, copy": {"method": "limuon", "rank": 8},
}


def run(options: dict[str, Any], seed: int, epochs: int, lr: float) -> dict[str, float]:
    """Train once and return what came out."""
    seed_everything(seed, verbose=False)
    model = DigitsViT(**options, lr=lr)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=epochs,
    )
    trainer.fit(model, datamodule=ImageData("digits", batch_size=64, val_fraction=0, seed=seed))
    optimizer = trainer.optimizers[0]
    return {
        "train_loss": float(trainer.callback_metrics["train/loss"]),
        "val_loss": float(trainer.callback_metrics["val/loss"]),
        "val_acc": float(trainer.callback_metrics["val/acc"]),
        "steps": trainer.global_step,
        "gradient_evaluations": optimizer.gradient_evaluations,
        "bytes_per_parameter": optimizer.memory()["bytes_per_parameter"],
    }


def show(found: list[dict[str, Any]], console: Console) -> None:
    """Print mean and spread of every row."""
    table = Table(title="equal steps, mean (spread over seeds)")
    for column in ("row", "val loss", "val accuracy", "gradient evaluations", "bytes / parameter"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for name in ROWS:
        runs = [run for run in found if run["row"] == name]
        losses, accuracies = [[run[key] for run in runs] for key in ("val_loss", "val_acc")]
        table.add_row(
            name,
            f"{statistics.mean(losses):.4f} ({max(losses) - min(losses):.4f})",
            f"{100 * statistics.mean(accuracies):.2f} ({100 * (max(accuracies) - min(accuracies)):.2f})",
            f"{runs[0]['gradient_evaluations']:.0f}",
            f"{runs[0]['bytes_per_parameter']:.2f}",
        )
    console.print(table)


def main() -> None:
    """Train every row with every seed, print, and append a row after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/limuon_parity.jsonl"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    journal = Journal(arguments.output)
    journal.header(epochs=arguments.epochs, lr=arguments.lr, seeds=arguments.seeds)
    for seed in arguments.seeds:
        for name, options in ROWS.items():
            found = run(options, seed, arguments.epochs, arguments.lr)
            journal.append("run", row=name, seed=seed, **found)
        show(journal.latest("run", "row", "seed"), Console())


if __name__ == "__main__":
    main()
