"""Tasks that train in seconds on one CPU thread: digits and CIFAR-10 with a ViT, text with a causal LM.

`digits-mlp` and `text-wide` have other models: nothing in the library was picked on them, but for the upper end of the
ramp of `lr="auto"`, on the first.

Random streams are seeded per run: initialisation, order of the data and augmentation depend on the seed alone.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

import lightning_gluon
from benchmarks.journal import Journal


@dataclass
class Task:
    """Data in memory and a model for it."""

    name: str
    train: Tensor
    train_labels: Tensor | None
    test: Tensor
    test_labels: Tensor | None
    batch: int
    model: Callable[[], nn.Module]
    steps: int = 400

    def batches(self, generator: torch.Generator, batch: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented training batches."""
        for _ in range(steps):
            if self.train_labels is None:
                yield _windows(self.train, torch.randint(len(self.train) - 65, (batch,), generator=generator))
                continue
            chosen = torch.randint(len(self.train), (batch,), generator=generator)
            yield _shifted(self.train[chosen], generator), self.train_labels[chosen]

    def evaluation(self) -> tuple[Tensor, Tensor]:
        """Return the evaluation batch."""
        if self.test_labels is None:
            return _windows(self.test, torch.arange(0, len(self.test) - 65, 400))
        return self.test, self.test_labels


def _windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    rows = text[starts[:, None] + torch.arange(65)]
    return rows[:, :-1], rows[:, 1:]


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its size, around the edge."""
    size = images.shape[-1]
    shifts = torch.randint(-(size // 8), size // 8 + 1, (2, len(images), 1, 1), generator=generator)
    rows = (torch.arange(size)[None, :, None] + shifts[0]) % size
    columns = (torch.arange(size)[None, None, :] + shifts[1]) % size
    return images[torch.arange(len(images))[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def _vit(size: int, channels: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=size, patch_size=size // 4, in_chans=channels, num_classes=10, embed_dim=32, depth=2, num_heads=2
    )


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10)
    )


def _language_model(width: int = 64, depth: int = 2) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return Qwen2ForCausalLM(config)


def digits() -> Task:
    """Return scikit-learn's 1,797 images of 8 x 8 pixels, 360 of them for evaluation.

    The model sits on a plateau for some hundred steps, how many is chance: after 400 steps losses of runs that differ
    by rounding alone differ by 30 %, after 1,200 by 8 %. So this task trains for longer.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    pixels = (torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1)[order]
    classes = torch.tensor(labels)[order]
    return Task("digits", pixels[360:], classes[360:], pixels[:360], classes[:360], 64, partial(_vit, 8, 1), steps=800)


def cifar10(folder: str | Path) -> Task:
    """Return 10,000 training and 1,000 test images from `train.parquet` and `test.parquet` in the hub's layout."""
    train, labels = images(Path(folder) / "train.parquet", 10_000)
    test, test_labels = images(Path(folder) / "test.parquet", 1_000)
    return Task("cifar10", train, labels, test, test_labels, 64, partial(_vit, 32, 3))


def images(path: Path, count: int) -> tuple[Tensor, Tensor]:
    """Return the first images of a parquet file, within -2 and 2, and their labels."""
    import numpy
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(path).slice(0, count)
    columns = table.column_names
    image, label = ("img" if "img" in columns else "image"), ("label" if "label" in columns else columns[-1])
    decoded = [numpy.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table[image].to_pylist()]
    pixels = torch.tensor(numpy.stack(decoded)).permute(0, 3, 1, 2).float() / 64 - 2
    return pixels, torch.tensor(table[label].to_pylist())


def text(folder: str | Path) -> Task:
    """Return bytes of `valid.txt` for training and of `test.txt` for evaluation."""
    parts = [torch.tensor(list((Path(folder) / name).read_bytes())) for name in ("valid.txt", "test.txt")]
    return Task("text", parts[0], None, parts[1][:80_000], None, 16, _language_model)


class Module(LightningModule):
    """A task's model with an optimizer of this library."""

    def __init__(self, task: Task, options: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.options = task.model(), options

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy."""
        output = self.net(batch[0])
        logits = getattr(output, "logits", output)
        return functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        """Build the optimizer."""
        return lightning_gluon.configure_optimizers(self, schedule="wsd", decay=0.4, **self.options)


class _Batches:
    """A data loader of a fixed number of batches."""

    def __init__(self, task: Task, seed: int, batch: int, steps: int) -> None:
        self.arguments, self.task, self.seed, self.steps = (batch, steps), task, seed, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.task.batches(torch.Generator().manual_seed(self.seed + 1), *self.arguments)


def train(
    task: Task,
    options: dict[str, Any],
    *,
    seed: int,
    steps: int,
    batch: int,
    callbacks: list[Callback] | None = None,
    parts: int = 1,
) -> dict[str, Any]:
    """Train once, every batch in so many `parts`.

    Returns:
        `loss` (evaluation, nan if it diverged), `seconds`, and the radii at the end.
    """
    _quiet()
    torch.manual_seed(seed)
    module = Module(task, options)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks or [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=parts,
    )
    start, failure = time.perf_counter(), ""
    try:
        trainer.fit(module, _Batches(task, seed, batch // parts, steps * parts))
    except FloatingPointError as error:
        failure = str(error)[:80]
    seconds = time.perf_counter() - start
    module.eval()
    with torch.no_grad():
        loss = float(module.loss(task.evaluation()))
    groups = trainer.optimizers[0].param_groups
    radii = {g["name"]: g["radius"] * g.get("initial_lr", g["lr"]) for g in groups if not isinstance(g["radius"], list)}
    return {
        "loss": loss if not failure else float("nan"),
        "seconds": round(seconds, 2),
        "radii": radii,
        "failure": failure,
    }


def chosen(names: Iterable[str], cifar10_folder: Path | None, text_folder: Path | None) -> list[Task]:
    """Return the tasks of those names whose data is at hand."""
    makers: dict[str, Callable[[], Task]] = {
        "digits": digits,
        "digits-mlp": lambda: replace(digits(), name="digits-mlp", model=_mlp),
    }
    if cifar10_folder:
        makers["cifar10"] = lambda: cifar10(cifar10_folder)
    if text_folder:
        makers["text"] = lambda: text(text_folder)
        makers["text-wide"] = lambda: replace(makers["text"](), name="text-wide", model=partial(_language_model, 96, 3))
    return [makers[name]() for name in names if name in makers]


def continued(
    parser: argparse.ArgumentParser,
    results: Path,
    run: Callable[[argparse.Namespace, Journal], None],
    table: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Run what a results file lacks, and print its table: the main function of the benchmarks on these tasks.

    Args:
        parser: The benchmark's own options.
        results: Where its results lie by default.
        run: Appends what the results lack, run by run.
        table: Renders the runs.
    """
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--text", type=Path, help="folder with valid.txt and test.txt")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(given.results)
    if not given.table:
        run(given, journal)
    print(table(journal.of("run")))


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
