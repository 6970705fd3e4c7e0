"""The pattern of smoothness constants that the Gluon paper reports, as the paper measured it and on one sample.

    python -m benchmarks.anchors.smoothness --text FOLDER_WITH_INPUT_TXT [--cifar10 FOLDER_WITH_PARQUET]

Published (arXiv 2505.13416): fitted L1 of about 70 in the blocks of NanoGPT and 1.3 in its tied table; on a CNN
about 3 in convolutions and .03 in the head, with L0 near 0. The paper fits differences of two minibatch gradients
along a training.

    trajectory     ||g^k - g^{k-1}||_* / ||X^k - X^{k-1}||  ~  L0 + L1 ||g^k||_*       the paper's
    same sample    ||c_new - c_old||_* / ||X^k - X^{k-1}||  ~  L0 + L1 ||g^k||_*       without the noise of two batches
    noise only     sqrt(2) / t: what the first returns where the gradients are noise, whatever the smoothness is

Ours: `gluon` on nanoGPT's character model, and on the CNN of `benchmarks.gamma_sweep`. Every matrix is measured
every few steps by `SmoothnessMonitor`, and the median over the matrices of a role is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_gluon
from benchmarks import gamma_sweep
from benchmarks.anchors.runner import RESULTS, Batch
from benchmarks.anchors.shakespeare import Shakespeare
from benchmarks.journal import Journal
from lightning_gluon.callbacks import SmoothnessMonitor
from lightning_gluon.smoothness import fit

PUBLISHED = {
    ("nanogpt", "hidden"): 70.0,
    ("nanogpt", "embedding"): 1.3,
    ("cnn", "hidden"): 3.0,
    ("cnn", "input"): 3.0,
    ("cnn", "head"): 0.03,
}
ESTIMATES = {"trajectory": "L_trajectory", "same sample": "L_hat", "noise only": "noise_only"}
ROLES = ("hidden", "input", "embedding", "head")


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Args:
        net: Makes the model.
        batches: Yields so many batches.
        loss: Returns the loss of a batch.
    """

    net: Callable[[], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    loss: Callable[[nn.Module, Batch], Tensor]


class Module(LightningModule):
    """The model of a case under `gluon`."""

    def __init__(self, case: Case, lr: float) -> None:
        super().__init__()
        self.net, self.case, self.lr = case.net(), case, lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.case.loss(self.net, batch)

    def configure_optimizers(self) -> Any:
        """Build the optimizer."""
        return lightning_gluon.configure_optimizers(self, method="gluon", lr=self.lr)


def nanogpt(path: Path) -> Case:
    """Return nanoGPT's character model."""
    task = Shakespeare(path)
    return Case(task.net, lambda steps: task.batches(0, steps), task.loss)


def cnn(path: Path) -> Case:
    """Return a CNN of three convolutions on 2,000 images of CIFAR-10."""
    task = gamma_sweep.task(path)
    generator = torch.Generator().manual_seed(0)

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    return Case(gamma_sweep.network, lambda steps: task.batches(generator, gamma_sweep.BATCH, steps), loss)


def samples(case: Case, lr: float, steps: int, every: int) -> list[dict[str, Any]]:
    """Train once under the monitor and return its lines on single matrices."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        monitor = SmoothnessMonitor(every_n_steps=every)
        silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=[monitor],
            default_root_dir=folder,
            **dict.fromkeys(silent, False),
        )
        trainer.fit(Module(case, lr), DataLoader(list(case.batches(steps)), batch_size=None))
        assert monitor.path is not None
        lines = [json.loads(line) for line in monitor.path.read_text().splitlines()]
    return [line for line in lines if line.get("layer") is not None]


def constants(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the medians over the matrices of every role, by estimate."""
    layers: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        layers[line["role"], line["layer"]].append(line)
    for role in ROLES:
        own = [found for (name, _), found in layers.items() if name == role]
        for estimate, reading in ESTIMATES.items():
            fits = [fit(_column(found, reading), _column(found, "grad_dual_norm")) for found in own]
            if fits:
                yield {
                    "role": role,
                    "estimate": estimate,
                    "matrices": len(fits),
                    "samples": fits[0].samples,
                    "L0": statistics.median(found.L0 for found in fits),
                    "L1": statistics.median(found.L1 for found in fits),
                    "goodness": statistics.median(found.goodness for found in fits),
                }


def _column(lines: list[dict[str, Any]], reading: str) -> list[float]:
    return [float("nan") if line[reading] is None else line[reading] for line in lines]


def table(runs: list[dict[str, Any]]) -> str:
    """Return the constants as Markdown."""
    lines = ["| model | role | estimate | L0 | L1 | goodness | published L1 |", "|---" * 7 + "|"]
    for run in runs:
        known = PUBLISHED.get((run["model"], run["role"]))
        told = "" if known is None else f"{known:g}"
        numbers = f"{run['L0']:.3g} | {run['L1']:.3g} | {run['goodness']:.2f}"
        lines.append(f"| {run['model']} | {run['role']} | {run['estimate']} | {numbers} | {told} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="folder with input.txt")
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=4, help="steps between two measurements")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--output", type=Path, default=RESULTS / "anchor_smoothness.jsonl")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    makers = {"nanogpt": (nanogpt, given.text), "cnn": (cnn, given.cifar10)}
    journal = Journal(given.output)
    for name, (make, path) in makers.items():
        if path is None:
            continue
        start = time.process_time()
        settings = {"lr": given.lr, "steps": given.steps, "every": given.every}
        found = list(constants(samples(make(path), **settings)))
        spent = round(time.process_time() - start, 1)
        for row in found:
            journal.append("run", model=name, **settings, **row, processor_seconds=spent)
    page = table(journal.latest("run", "model", "role", "estimate"))
    given.output.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
