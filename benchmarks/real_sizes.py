"""Qwen2.5-0.5B, Mamba-130M and ViT-S from their configurations on an accelerator, N steps with every method.

Batch and length are the recipes', which are LiMuon's (arXiv 2509.14562): 16 x 1024 and 64 x 256 tokens, in bf16-mixed,
on the standard library's sources; ViT-S takes 128 digits at 32 x 32. Learning rates are those of `recipes/methods`, not
tuned to these sizes. Every method takes the same number of steps: one with two gradients per step spends twice as many.

    python -m benchmarks.real_sizes --steps 200
    python -m benchmarks.real_sizes --steps 20 --tiny                      # the same on a CPU, with the tiny overlays

Recorded per run: the loss of every step, the held-out loss, seconds per step (median, the first tenth left out), tokens
or images per second, peak memory and the optimizer's state. A row is written after every run, and a second call does
only what is missing. So far this has run on a CPU only; on a GPU it is untested.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import resource
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

from benchmarks.journal import Journal
from lightning_gluon import tasks
from lightning_gluon.callbacks import GluonOptimizer

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
SECTIONS = ("model", "data", "optimizer", "trainer", "init_args")  # merged; everything else is replaced
VAL_BATCHES = 8
IMAGES = ("vit",)  # models whose data are images, not text


class Record(Callback):
    """Keep loss, duration and size of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.items = 0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self.items = tasks.count_items(batch)
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        """Stop the clock when the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)
        self.losses.append(round(float(outputs["loss"]), 4))


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return two configurations as one, the way the command line merges its files."""
    merged = dict(old)
    for key, value in new.items():
        if key in SECTIONS and key in old:
            value = merge(old[key], value)
        merged[key] = value
    return merged


def configuration(model: str, method: str, *, tiny: bool) -> dict[str, Any]:
    """Return what the recipe's files say, on text that every Python has."""
    names = [f"{model}/base", f"methods/{method}"]
    if tiny:
        names.insert(1, f"{model}/tiny")
    config: dict[str, Any] = {}
    for name in names:
        text = (RECIPES / f"{name}.yaml").read_text()
        config = merge(config, yaml.safe_load(text))
    given = {"num_workers": 0} if model in IMAGES else {"source": "python"}
    return merge(config, {"data": {"init_args": given}})


def built(section: dict[str, Any]) -> Any:
    """Return the object that a `class_path` with its `init_args` describes."""
    return getattr(tasks, section["class_path"].rpartition(".")[2])(**section["init_args"])


def train(config: dict[str, Any], data: LightningDataModule, steps: int) -> dict[str, Any]:
    """Train once and return what was measured; a run that fails says why."""
    gc.collect()
    cuda = torch.cuda.is_available() and config["trainer"].get("accelerator") != "cpu"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seed_everything(0, verbose=False)
    record, options = Record(), {k: config["trainer"][k] for k in ("precision", "gradient_clip_val")}
    options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": VAL_BATCHES}
    options |= {"max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": steps}
    trainer = Trainer(max_steps=steps, accelerator="cuda" if cuda else "cpu", devices=1, callbacks=[record], **options)
    run: dict[str, Any] = {"failure": None}
    try:
        with torch.device("cuda" if cuda else "cpu"):
            module = built(config["model"])
        GluonOptimizer(**config["optimizer"]).bind(module)
        trainer.fit(module, datamodule=data)
    except (RuntimeError, ArithmeticError, ImportError) as error:  # no memory, not finite, a package that is missing
        run["failure"] = f"{type(error).__name__}: {error}"[:300]
    else:
        optimizer: Any = trainer.optimizers[0]
        run["val_loss"] = float(trainer.callback_metrics["val/loss"])
        run["gradient_evaluations"] = optimizer.gradient_evaluations
        run["state_bytes"] = optimizer.memory()["state_bytes"]
        run["parameters"] = sum(p.numel() for p in module.parameters())
        run["seconds_per_step"] = statistics.median(record.seconds[len(record.seconds) // 10 :])
        run["items_per_second"] = record.items / run["seconds_per_step"]
    # On a CPU the peak is that of the process since it began, the runs before this one included.
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run["peak_bytes"] = torch.cuda.max_memory_allocated() if cuda else process
    return {**run, "steps": len(record.losses), "train_loss": record.losses}


def curve(run: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return gradient evaluations and training losses of about 20 points, each the mean of its steps."""
    steps, losses = run["steps"], run["train_loss"]
    window = max(1, steps // 20)
    per_step = run["gradient_evaluations"] / steps
    x, y = [], []
    for first in range(0, steps, window):
        last = min(steps, first + window)
        x.append(per_step * last)
        y.append(statistics.mean(losses[first:last]))
    return x, y


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw the training loss against gradient evaluations, one panel per model."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    runs = [run for run in rows if run["failure"] is None]
    models = list(dict.fromkeys(run["model"] for run in runs))
    if not runs:
        return
    figure, panels = pyplot.subplots(1, len(models), figsize=(7 * len(models), 5), layout="constrained", squeeze=False)
    colors = itertools.cycle(pyplot.get_cmap("tab20").colors)
    for axes, model in zip(panels[0], models, strict=True):
        for run in runs:
            if run["model"] != model:
                continue
            milliseconds, gigabytes = 1000 * run["seconds_per_step"], run["peak_bytes"] / 2**30
            label = f"{run['method']}, {milliseconds:.0f} ms, {gigabytes:.1f} GiB"
            axes.plot(*curve(run), label=label, color=next(colors))
        axes.set(title=model, xlabel="gradient evaluations", ylabel="training loss")
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and append a row after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(file.stem for file in (RECIPES / "methods").glob("*.yaml"))
    models = ("qwen2_5", "mamba", "vit")
    parser.add_argument("--models", nargs="+", choices=models, default=list(models))
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tiny", action="store_true", help="the tiny overlays, on the CPU")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "real_sizes.jsonl")
    given = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("Expected a CUDA device for the real sizes, but found none. Try the same with --tiny.")
    journal = Journal(given.output)
    journal.header(steps=given.steps, tiny=given.tiny)
    for model in given.models:
        data = None
        for method in given.methods:
            if journal.find("run", model=model, method=method):
                continue
            config = configuration(model, method, tiny=given.tiny)
            data = built(config["data"]) if data is None else data
            run = journal.append("run", model=model, method=method, **train(config, data, given.steps))
            plot(journal.of("run"), given.output.with_suffix(".png"))
            del run["train_loss"]
            print(", ".join(f"{key}={value}" for key, value in run.items()), flush=True)


if __name__ == "__main__":
    main()
