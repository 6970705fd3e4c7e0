"""Train a small CNN on handwritten digits with Gluon and with AdamW, three times each, and compare the two.

    make quickstart                  or                  python -m examples.quickstart

With the same seed both start from the same weights, see the same images in the same order and take the same number of
steps with one gradient each, under the same schedule. The table has the mean of the seeds and their range.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import lightning_gluon
from lightning_gluon.tasks import ImageData

FOLDER = Path("runs/quickstart")
EPOCHS = 15
SEEDS = (0, 1, 2)
COLORS = ("tab:blue", "tab:orange")

# Each the best of RATES by validation loss on one seed, a fifth of the training images held out for it (--sweep).
# What is not named here is the method's default.
RATES = {"gluon": (0.005, 0.01, 0.02, 0.04), "adamw": (0.002, 0.004, 0.008, 0.016)}
SETTINGS: dict[str, dict[str, Any]] = {
    "gluon": {"lr": 0.02},
    "adamw": {"lr": 0.004},
}


class DigitsCNN(LightningModule):
    """A CNN of 58,000 parameters for images of 8 x 8 pixels.

    Args:
        method: A row of `lightning_gluon.METHODS`.
        **options: What `lightning_gluon.configure_optimizers` takes: `lr`, `weight_decay`, `radius`, ...
    """

    def __init__(self, method: str, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.method, self.options = method, options
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.GELU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 10))
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


class Point(NamedTuple):
    """What was validated after a step."""

    step: int
    loss: float
    accuracy: float


class Record(Callback):
    """Keep what the table and the picture show."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.val: list[Point] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.start)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep the validation metrics."""
        metrics = trainer.callback_metrics
        self.val.append(Point(trainer.global_step, float(metrics["val/loss"]), float(metrics["val/acc"])))


@dataclass
class Run:
    """One training.

    Args:
        record: What was recorded.
        state: Bytes of the optimizer's state.
        gradients: Gradient evaluations.
    """

    record: Record
    state: int
    gradients: int


def train(method: str, seed: int, held_out: float = 0.0, **options: Any) -> Run:
    """Train one CNN.

    Args:
        method: A row of `lightning_gluon.METHODS`.
        seed: Seed of weights and order.
        held_out: Share of the training images that is validated on, in place of the test images.
        **options: Options in place of those of `SETTINGS`.

    Returns:
        What was recorded and what it cost.
    """
    seed_everything(seed, verbose=False)
    model, record = DigitsCNN(method, **(options or SETTINGS[method])), Record()
    trainer = Trainer(
        accelerator="cpu",  # the model is too small for anything else
        max_epochs=EPOCHS,
        callbacks=[record],
        logger=TensorBoardLogger(str(FOLDER), name=f"{method}-{seed}"),
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        log_every_n_steps=5,
    )
    trainer.fit(model, datamodule=ImageData("digits", batch_size=64, val_fraction=held_out, seed=seed))
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, lightning_gluon.Gluon)
    return Run(record, optimizer.memory()["state_bytes"], optimizer.gradient_evaluations)


def compare(runs: dict[str, list[Run]]) -> Table:
    """Return the runs side by side, one column per method."""
    table = Table("", *runs, title=f"CNN on digits, {EPOCHS} epochs, mean of {len(SEEDS)} seeds [range]")
    columns = [_column(method, found) for method, found in runs.items()]
    for name in columns[0]:
        cells = [column[name] for column in columns]
        table.add_row(name, *cells)
    return table


def _column(method: str, runs: list[Run]) -> dict[str, str]:
    rate = SETTINGS[method]["lr"]
    seconds = statistics.median(second for run in runs for second in run.record.seconds)
    ends = [run.record.val[-1] for run in runs]
    return {
        "learning rate": f"{rate:g}",
        "validation accuracy, %": spread([100 * end.accuracy for end in ends], 2),
        "validation loss": spread([end.loss for end in ends], 4),
        "seconds per step (median)": f"{seconds:.4f}",
        "optimizer state, bytes": f"{runs[0].state:,}",
        "gradient evaluations": f"{runs[0].gradients:,}",
    }


def spread(values: list[float], digits: int) -> str:
    """Return mean and range of some numbers."""
    return f"{statistics.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """Draw accuracy and loss along training: the mean of the seeds as a line, their range as a band."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for color, (method, found) in zip(COLORS, runs.items(), strict=True):
        label = f"{method}, lr {SETTINGS[method]['lr']:g}"
        curves = [run.record.val for run in found]
        _band(left, [[100 * point.accuracy for point in curve] for curve in curves], curves[0], color, label)
        _band(right, [[point.loss for point in curve] for curve in curves], curves[0], color, label)
    left.set(title="Validation accuracy", xlabel="optimizer step", ylabel="correct, %", ylim=(85, 100))
    right.set(title="Validation loss", xlabel="optimizer step", ylabel="cross-entropy", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    figure.suptitle(
        f"A CNN on 8 x 8 digits: equal steps, same starts, same batches; {len(SEEDS)} seeds and their range"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _band(axes: Any, curves: list[list[float]], points: list[Point], color: str, label: str) -> None:
    steps = [point.step for point in points]
    columns = list(zip(*curves, strict=True))
    axes.plot(steps, [statistics.mean(column) for column in columns], color=color, label=label)
    axes.fill_between(steps, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.2)


def sweep() -> None:
    """Print the validation loss of every rate, on a fifth of the training images."""
    for method, rates in RATES.items():
        for lr in rates:
            loss = train(method, 0, held_out=0.2, lr=lr).record.val[-1].loss
            print(f"{method} {lr:g} {loss:.4f}", flush=True)


def main() -> None:
    """Print the partition, train both, print the comparison and say where everything is."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # 1,437 tiny images in memory need none
    warnings.filterwarnings("ignore", ".*treespec.*")  # between Lightning and torch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # tensors this small lose time on more threads
    started = time.perf_counter()
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width)
    console.print(lightning_gluon.partition(DigitsCNN("gluon").net))
    runs: dict[str, list[Run]] = {method: [] for method in SETTINGS}
    for seed in SEEDS:
        for method, found in runs.items():
            console.print(f"{method}, seed {seed}: {EPOCHS} epochs", highlight=False)
            found.append(train(method, seed))
    picture = FOLDER / "curves.png"
    draw(runs, picture)
    console.print(compare(runs))
    seconds = time.perf_counter() - started
    console.print(f"Done in {seconds:.0f} s.", highlight=False)
    console.print(f"Curves       {picture}", highlight=False)
    console.print(f"TensorBoard  tensorboard --logdir {FOLDER}", highlight=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="print the loss of every learning rate instead")
    if parser.parse_args().sweep:
        sweep()
    else:
        main()
