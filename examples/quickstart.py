"""Train a small ViT on handwritten digits twice, with Gluon and with AdamW, and compare the two.

    make quickstart                  or                  python -m examples.quickstart

Both runs start from the same weights, see the same images in the same order and take the same number of steps with one
gradient each, under the same schedule.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

import lightning_gluon
from lightning_gluon.tasks import ImageData

FOLDER = Path("runs/quickstart")
EPOCHS = 30
COLORS = ("tab:blue", "tab:orange")

# Each the best of five learning rates by mean validation loss over three seeds, a fifth of the training images held out
# for it: gluon .005 .01 .02 .04 .08, adamw .001 .002 .004 .008 .016. What is not named here is the method's default.
# Gluon's sweep was made before the input layer had its present default radius.
SETTINGS: dict[str, dict[str, Any]] = {
    "gluon": {"lr": 0.02},
    "adamw": {"lr": 0.004, "weight_decay": 0.05},
}


class DigitsViT(LightningModule):
    """A ViT of 0.2 M parameters for images of 8 x 8 pixels.

    Args:
        method: A row of `lightning_gluon.METHODS`.
        **options: What `lightning_gluon.configure_optimizers` takes: `lr`, `weight_decay`, `radius`, ...
    """

    def __init__(self, method: str, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.method, self.options = method, options
        self.net = VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4
        )
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.net(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy on images that were not trained on."""
        images, labels = batch
        logits = self.net(images)
        self.accuracy(logits, labels)
        self.log("val/loss", torch.nn.functional.cross_entropy(logits, labels))
        self.log("val/acc", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule: the one line that makes this a Gluon run."""
        return lightning_gluon.configure_optimizers(
            self, method=self.method, schedule="cosine", warmup=0.1, **self.options
        )


class Record(Callback):
    """Keep what the table and the picture show."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.train: list[tuple[int, float]] = []
        self.val: list[tuple[int, float, float]] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Stop the clock and keep the loss."""
        self.seconds.append(time.perf_counter() - self.start)
        self.train.append((trainer.global_step, float(outputs["loss"])))

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep the validation metrics."""
        metrics = trainer.callback_metrics
        self.val.append((trainer.global_step, float(metrics["val/loss"]), float(metrics["val/acc"])))


def train(method: str) -> tuple[Record, lightning_gluon.Gluon]:
    """Train one ViT; return what was recorded and the optimizer."""
    seed_everything(0, verbose=False)
    model, record = DigitsViT(method, **SETTINGS[method]), Record()
    trainer = Trainer(
        accelerator="cpu",  # the model is too small for anything else
        max_epochs=EPOCHS,
        callbacks=[record],
        logger=TensorBoardLogger(str(FOLDER), name=method),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=5,
    )
    trainer.fit(model, datamodule=ImageData("digits", batch_size=64, val_fraction=0))
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, lightning_gluon.Gluon)
    return record, optimizer


def compare(runs: dict[str, tuple[Record, lightning_gluon.Gluon]]) -> Table:
    """Return the runs side by side, one column per method."""
    table = Table("", *runs, title=f"ViT on digits, {EPOCHS} epochs")
    columns = [_column(method, *run) for method, run in runs.items()]
    for name in columns[0]:
        cells = [column[name] for column in columns]
        table.add_row(name, *cells)
    return table


def _column(method: str, record: Record, optimizer: lightning_gluon.Gluon) -> dict[str, str]:
    rate = SETTINGS[method]["lr"]
    seconds = statistics.median(record.seconds)
    _, loss, accuracy = record.val[-1]
    state = optimizer.memory()["state_bytes"]
    return {
        "learning rate": f"{rate:g}",
        "validation accuracy": f"{accuracy:.2%}",
        "validation loss": f"{loss:.4f}",
        "seconds per step (median)": f"{seconds:.4f}",
        "optimizer state, bytes": f"{state:,}",
        "gradient evaluations": f"{optimizer.gradient_evaluations:,}",
    }


def draw(runs: dict[str, tuple[Record, lightning_gluon.Gluon]], path: Path) -> None:
    """Draw accuracy and loss of every run along training."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for color, method in zip(COLORS, runs, strict=True):
        record, _ = runs[method]
        _draw_run(left, right, method, record, color)
    left.set(title="Validation accuracy", xlabel="optimizer step", ylabel="correct, %", ylim=(50, 101))
    right.set(title="Loss", xlabel="optimizer step", ylabel="cross-entropy", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    figure.suptitle("A ViT on 8 x 8 digits: Gluon and AdamW, equal steps, same start, same batches")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_run(left: Any, right: Any, method: str, record: Record, color: str) -> None:
    rate = SETTINGS[method]["lr"]
    steps, losses, accuracies = zip(*record.val, strict=True)
    percent = [100 * accuracy for accuracy in accuracies]
    left.plot(steps, percent, color=color, label=f"{method}, lr {rate:g}")
    right.plot(steps, losses, color=color, label=f"{method}, validation")
    steps, losses = zip(*record.train, strict=True)
    right.plot(
        steps,
        losses,
        color=color,
        alpha=0.3,
        lw=0.8,
        label=f"{method}, training batch",
    )


def main() -> None:
    """Print the partition, train both, print the comparison and say where everything is."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # 1,437 tiny images in memory need none
    warnings.filterwarnings("ignore", ".*treespec.*")  # between Lightning and torch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # tensors this small lose time on more threads
    started = time.perf_counter()
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width)
    console.print(lightning_gluon.partition(DigitsViT("gluon").net))
    runs = {}
    for method in SETTINGS:
        console.rule(f"{method}, {EPOCHS} epochs")
        runs[method] = train(method)
    picture = FOLDER / "curves.png"
    draw(runs, picture)
    console.print(compare(runs))
    seconds = time.perf_counter() - started
    console.print(f"Done in {seconds:.0f} s.", highlight=False)
    console.print(f"Curves       {picture}", highlight=False)
    console.print(f"TensorBoard  tensorboard --logdir {FOLDER}", highlight=False)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    main()
