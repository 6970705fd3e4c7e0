"""What SmoothnessMonitor costs at its defaults: CPU time of the same training with and without it.

    python -m benchmarks.monitor_overhead [--width 192] [--depth 3] [--batch 64]

The model is timm's ViT on 32 x 32 images with patches of 4; a block costs the same share at any depth. CPU time, not
wall time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from benchmarks.journal import Journal
from lightning_gluon import configure_optimizers
from lightning_gluon.callbacks import SmoothnessMonitor

RESULTS = Path(__file__).parent / "results" / "monitor_overhead.jsonl"


class Vit(LightningModule):
    """A ViT on random images."""

    def __init__(self, method: str, width: int, depth: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        shape = {"img_size": 32, "patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": width // 64}
        self.net, self.method = VisionTransformer(num_classes=10, **shape), method

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Build the optimizer."""
        return configure_optimizers(self, method=self.method, lr=0.02)


class Repeated:
    """A data loader that gives one batch again and again."""

    def __init__(self, batch: Any, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * self.count)


def seconds(method: str, given: argparse.Namespace, monitored: bool) -> float:
    """Return the CPU seconds of a training of `given.steps` steps."""
    torch.manual_seed(0)
    batch = (torch.randn(given.batch, 3, 32, 32), torch.randint(10, (given.batch,)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=given.steps,
            callbacks=[SmoothnessMonitor()] if monitored else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        start = time.process_time()
        trainer.fit(Vit(method, given.width, given.depth), Repeated(batch, given.steps))
        return time.process_time() - start


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("width", 192), ("depth", 3), ("batch", 64), ("steps", 100), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--methods", nargs="*", default=["gluon"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(given.results)
    for method in given.methods:
        for monitored in (False, True):  # what the first calls of a process cost is neither's
            seconds(method, argparse.Namespace(**{**vars(given), "steps": 2}), monitored)
        pairs = [(seconds(method, given, False), seconds(method, given, True)) for _ in range(given.rounds)]
        plain, watched = (statistics.median(column) for column in zip(*pairs, strict=True))
        row = {
            "every_n_steps": 50,
            "width": given.width,
            "depth": given.depth,
            "batch": given.batch,
            "steps": given.steps,
            "cpu_seconds": round(plain, 2),
            "cpu_seconds_monitored": round(watched, 2),
            "share": round(watched / plain - 1, 4),
            "shares": [round(b / a - 1, 4) for a, b in pairs],
        }
        print(journal.append("run", method=method, **row))


if __name__ == "__main__":
    main()
