"""Which method reaches which loss for the same number of gradients?

Every method gets the same number of gradient evaluations: one that takes two per step gets half the steps. Its
learning rate is swept on one seed around the one in `recipes/methods/<name>.yaml`, by the validation loss, and the
sweep is widened while its best value lies at an edge. The numbers reported are those of other seeds on the test split
(text has none but the validation split) at the rate that the sweep has chosen, so the choice does not flatter them. All
runs share model, data, batch, clipping and a cosine schedule with 5 % warmup; a seed is that of weights, order and
augmentation.

A method with AdamW beside a spectral step (Muon) has a second learning rate, for tables, heads and vectors. That is
swept as well, first, around the one of `recipes/methods/adamw.yaml`; it then stays where it is while the other is
swept. Nothing else is tuned: momentum, decay and the ratios between roles are those of the recipes.

    python -m benchmarks.compare --task digits
    python -m benchmarks.compare --task cifar10 --path FOLDER_WITH_PARQUET
    python -m benchmarks.compare --task text [--path TEXT_FILE]

A row is written after every run and a second call does only what is missing, so a long comparison can be stopped at
any time. Written beside the rows after every method: a table (.md) and a plot (.png).
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

import lightning_gluon
from benchmarks.journal import Journal
from lightning_gluon.tasks import CausalLM, ImageClassifier, ImageData, TextData

HERE = Path(__file__).parent
METHOD_FILES = HERE.parent / "recipes" / "methods"
DEFAULT = "adamw muon gluon gluon-mvr1 limuon-r8 scion gluon-igt lionmuon mars-approximate gluon-mvr2"
WIDEN = 3  # times a sweep may be widened, in all
POINTS = 8  # of each validation curve


@dataclass(frozen=True)
class Tokens:
    """The tables of a language model.

    Args:
        vocabulary: Rows of its table.
        tied: Whether its head is the same table.
    """

    vocabulary: int = 1024
    tied: bool = True


@dataclass(frozen=True)
class Task:
    """What is trained on, how long, and what counts as the result.

    Args:
        summary: One line for the table.
        evaluations: Gradient evaluations per run.
        metric: What is reported beside the loss.
        tokens: Tables of a language model; `None` for images.
    """

    summary: str
    evaluations: int
    metric: str
    tokens: Tokens | None = None

    def header(self) -> dict[str, Any]:
        """Return what a file of results says of its task."""
        return {"summary": self.summary, "evaluations": self.evaluations, "metric": self.metric}


TASKS = {
    "digits": Task("ViT (0.2 M) on scikit-learn's digits, batch 64", 400, "accuracy"),
    "cifar10": Task("ViT (0.5 M, patches of 8 x 8) on CIFAR-10, batch 64", 640, "accuracy"),
    "text": Task("Qwen2 (0.7 M) on 2 MB of text, batch 16 x 64", 800, "perplexity", Tokens()),
}


@functools.cache
def data(task: str, path: str | None) -> LightningDataModule:
    """Return the data of a task, read and split once for all runs."""
    images: dict[str, Any] = {"batch_size": 64, "seed": 0}
    tokens = TASKS[task].tokens
    if tokens is not None:
        source: dict[str, Any] = {"source": "files", "path": path} if path else {"source": "python"}
        source |= {"max_bytes": 2_000_000, "vocab_size": tokens.vocabulary, "seq_len": 64, "max_val_sequences": 256}
        module: LightningDataModule = TextData(**source, batch_size=16, seed=0)
    elif task == "cifar10":
        if path is None:
            raise SystemExit("Expected `--path FOLDER` with train*.parquet and test*.parquet for --task cifar10.")
        module = ImageData("parquet", path, crop_padding=4, flip=True, val_fraction=0.04, **images)
    else:
        module = ImageData(crop_padding=1, val_fraction=0.2, **images)
    module.prepare_data()
    module.setup("fit")
    return module


def fingerprint(task: str, path: str | None) -> str:
    """Return a checksum of the tokens, or of the labels in their order."""
    module: Any = data(task, path)
    parts = module.tokens if hasattr(module, "tokens") else module.splits
    checksum = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        values = part.labels.numpy() if hasattr(part, "labels") else part
        checksum.update(values.tobytes())
    return checksum.hexdigest()[:16]


def build(task: str, path: str | None, seed: int) -> tuple[LightningModule, LightningDataModule]:
    """Return a new model, and the data in an order that is a function of the seed."""
    batches: Any = copy.copy(data(task, path))
    batches.seed = seed
    tokens = TASKS[task].tokens
    if tokens is not None:
        config = {"vocab_size": tokens.vocabulary, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3}
        config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tokens.tied}
        return CausalLM("qwen2", config), batches
    kwargs = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4}
    if task == "cifar10":
        kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
    return ImageClassifier("vit_tiny_patch16_224", 10, model_kwargs=kwargs), batches


class Curve(Callback):
    """Keep the validation metrics against gradient evaluations, and the training loss of every step."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep the loss."""
        self.losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep what was validated."""
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        optimizer: Any = trainer.optimizers[0]
        self.points.append({"evaluations": optimizer.gradient_evaluations, **found})


def settings(name: str) -> dict[str, Any]:
    """Return the arguments of `configure_optimizers` that a method's recipe file holds."""
    return yaml.safe_load((METHOD_FILES / f"{name}.yaml").read_text())["optimizer"]


def gradients(given: dict[str, Any]) -> int:
    """Return the gradients that a step costs under arguments of `configure_optimizers`."""
    options = {**given, "lr": 0.1, "total_steps": 1}
    options.pop("schedule", None)
    # Rules may name any layer; an option of theirs asks for a matrix of its norm.
    net = torch.nn.ModuleDict({"mlp": torch.nn.Linear(128, 128), "head": torch.nn.Linear(128, 8)})
    optimizer = lightning_gluon.configure_optimizers(net, **options)
    return 2 if optimizer.reference_point == "previous" else 1


def companion_rate(name: str) -> float | None:
    """Return AdamW's recipe rate for a method that has AdamW beside its hidden matrices, else None."""
    rules = lightning_gluon.METHODS[settings(name)["method"]].rules
    beside = rules["head"].estimator == "adamw" != rules["hidden"].estimator
    return settings("adamw")["lr"] if beside else None


def train(
    task: str, path: str | None, name: str, lr: float, companion: float | None, seed: int, evaluations: int
) -> dict[str, Any]:
    """Train a method of the recipes once and return the result."""
    given = {**settings(name), "lr": lr}
    if companion is not None:
        rules = lightning_gluon.METHODS[given["method"]].rules
        given["radius"] = {role: companion / lr for role in rules if role != "hidden"}
    return {"method": name, "lr": lr, "companion": companion, **fit(task, path, given, seed, evaluations)}


def fit(
    task: str,
    path: str | None,
    given: dict[str, Any],
    seed: int,
    evaluations: int,
    test: bool = True,
    points: int = POINTS,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train once; a run that diverges has infinite losses.

    Args:
        task: Name of the task.
        path: Its data.
        given: Arguments of `configure_optimizers`.
        seed: Seed of weights, order and augmentation.
        evaluations: Gradient evaluations.
        test: Whether the test split is read at the end. A run that only tunes has no need of it.
        points: Points of the validation curve.
        callbacks: What else looks at the training.

    Returns:
        Metrics, the validation curve, and what the run cost.
    """
    seed_everything(seed, verbose=False)
    module, batches = build(task, path, seed)
    steps = evaluations // gradients(given)
    given = {"schedule": "cosine", "warmup": 0.05, **given, "total_steps": steps}

    def configure(self: LightningModule) -> Any:
        return lightning_gluon.configure_optimizers(self, **given)

    module.configure_optimizers = configure.__get__(module)  # type: ignore[method-assign]
    curve = Curve()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "check_val_every_n_epoch": None}
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=max(1, steps // points),
        gradient_clip_val=1.0,
        callbacks=[curve, *callbacks],
        **options,
    )
    start = time.perf_counter()
    failure = None
    try:
        trainer.fit(module, datamodule=batches)
        validated = trainer.validate(module, datamodule=batches, verbose=False)[0]
        tested = trainer.test(module, datamodule=batches, verbose=False)[0] if test else {}
        metrics = {**validated, **tested}
    except FloatingPointError as error:
        metrics = {"val/loss": math.inf, "test/loss": math.inf}
        failure = str(error)[:120]
    optimizer: Any = trainer.optimizers[0]
    return {
        "seed": seed,
        "steps": steps,
        "evaluations": optimizer.gradient_evaluations,
        "bytes_per_parameter": round(optimizer.memory()["bytes_per_parameter"], 3),
        "seconds": round(time.perf_counter() - start, 1),
        "metrics": metrics,
        "curve": curve.points,
        "train_loss": [round(loss, 4) for loss in curve.losses[:: max(1, steps // 100)]],
        "failure": failure,
    }


def training_loss(run: dict[str, Any]) -> float:
    """Return the mean loss of a run's last training batches, a tenth of all; infinite for a run that diverged."""
    losses = run["train_loss"]
    last = losses[-max(1, len(losses) // 10) :]
    return math.inf if run["failure"] or not last else statistics.mean(last)


class Comparison:
    """The runs of one task, kept in a file and filled in where they are missing.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.budget = arguments.evaluations or TASKS[arguments.task].evaluations
        self.header = {"task": arguments.task, **TASKS[arguments.task].header(), "evaluations": self.budget}
        self.journal = Journal(arguments.output)
        self.journal.header(**self.header)

    def check_data(self) -> None:
        """Raise if the file's runs saw other data."""
        mark = fingerprint(self.arguments.task, self.arguments.path)
        known = self.journal.of("data")
        if not known:
            self.journal.append("data", fingerprint=mark)
        elif known[-1]["fingerprint"] != mark:
            raise SystemExit(f"'{self.journal.path}' holds runs on other data. Give its --path or another --output.")

    def run(self, name: str, lr: float, companion: float | None, seed: int) -> dict[str, Any]:
        """Return a run, from the file where it is there."""
        known = self.journal.find("run", method=name, lr=lr, companion=companion, seed=seed)
        if known is not None:
            return known
        self.check_data()
        done = train(self.arguments.task, self.arguments.path, name, lr, companion, seed, self.budget)
        self.journal.append("run", **done)
        beside = "" if companion is None else f", AdamW {companion:g}"
        losses = "  ".join(f"{key} {done['metrics'][key]:.4f}" for key in ("val/loss", "test/loss"))
        print(f"{name:18} lr {lr:<8g}{beside} seed {seed}  {losses}  {done['seconds']} s", flush=True)
        return done

    def sweep(self, centre: float, run: Callable[[float], dict[str, Any]]) -> list[float]:
        """Return the values tried, the one of the lowest validation loss first."""
        values = [_round(centre * factor) for factor in self.arguments.factors]
        for widened in range(WIDEN + 1):
            ranked = sorted(values, key=lambda value: _rank(run(value)))
            low, high = min(values), max(values)
            if widened == WIDEN or ranked[0] not in (low, high):
                return ranked
            values.append(_round(low / 2 if ranked[0] == low else high * 2))
        return ranked

    def summary(self, name: str) -> dict[str, Any]:
        """Sweep a method, run its best learning rates on the other seeds, and summarise."""
        centre, first, companions = settings(name)["lr"], self.arguments.sweep_seed, None
        companion = companion_rate(name)
        if companion is not None:
            companions = self.sweep(companion, lambda value: self.run(name, centre, value, first))
            companion = companions[0]
        rates = self.sweep(centre, lambda value: self.run(name, value, companion, first))
        runs = [self.run(name, rates[0], companion, seed) for seed in self.arguments.seeds]
        metric = f"test/{self.header['metric']}"
        losses = [run["metrics"]["test/loss"] for run in runs]
        values = [run["metrics"].get(metric, math.nan) for run in runs]
        found = {
            "method": name,
            "gradients per step": gradients(settings(name)),
            "steps": runs[0]["steps"],
            "evaluations": runs[0]["evaluations"],
            "sweep": rates,
            "companion sweep": companions,
            "test/loss": [statistics.mean(losses), _spread(losses)],
            metric: [statistics.mean(values), _spread(values)],
        }
        known = [row for row in self.summaries() if row["method"] == name]
        return found if _same(found, known) else self.journal.append("summary", **found)

    def summaries(self) -> list[dict[str, Any]]:
        """Return the latest summary of every method."""
        return self.journal.latest("summary", "method")


def _same(found: dict[str, Any], known: list[dict[str, Any]]) -> bool:
    """Tell whether a summary is the one on file, NaN included."""
    return [repr(found)] == list(map(repr, known))


def _rank(run: dict[str, Any]) -> float:
    loss = run["metrics"]["val/loss"]
    return loss if math.isfinite(loss) else math.inf


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def _swept(tried: list[float]) -> str:
    edge = "*" if tried[0] in (min(tried), max(tried)) else ""
    values = ", ".join(f"{value:g}" for value in sorted(tried))
    return f"{tried[0]:g}{edge} [{values}]"


def table(header: dict[str, Any], summaries: list[dict[str, Any]], seeds: list[int]) -> str:
    """Return the summaries as Markdown, best first."""
    metric = f"test/{header['metric']}"
    lines = [
        f"{header['summary']}; {header['evaluations']} gradient evaluations per run; {len(seeds)} seeds, mean and",
        "standard deviation; the learning rates tried are in brackets, `*` marks a best one at the edge.",
        "",
        f"| method | test/loss | {metric} | lr | steps | gradients |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(summaries, key=_mean_loss):
        loss, value = ("{:.3f} ± {:.3f}".format(*row[key]) for key in ("test/loss", metric))
        rate = _swept(row["sweep"])
        if row["companion sweep"]:
            rate += f"; AdamW's {_swept(row['companion sweep'])}"
        cells = (row["method"], loss, value, rate, row["steps"], row["evaluations"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _mean_loss(row: dict[str, Any]) -> float:
    return row["test/loss"][0]


def plot(comparison: Comparison, summaries: list[dict[str, Any]], seeds: list[int]) -> None:
    """Draw validation loss against gradient evaluations: mean and range of the seeds, one line per method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for index, row in enumerate(sorted(summaries, key=_mean_loss)):
        own = [run for run in comparison.journal.of("run") if run["method"] == row["method"]]
        runs = [run for run in own if run["seed"] in seeds]
        curves = [run["curve"] for run in runs if run["lr"] == row["sweep"][0] and run["failure"] is None]
        if not curves:
            continue
        points = [[point["evaluations"], point["val/loss"]] for curve in curves for point in curve]
        grid = sorted({x for x, _ in points})
        losses = [[y for x, y in points if x == g] for g in grid]
        style = "--" if row["gradients per step"] == 2 else "-"
        label = f"{row['method']}, lr {row['sweep'][0]:g}"
        axes.plot(grid, list(map(statistics.mean, losses)), style, color=f"C{index % 10}", label=label)
        axes.fill_between(grid, list(map(min, losses)), list(map(max, losses)), color=f"C{index % 10}", alpha=0.2)
    axes.set(xlabel="gradient evaluations", ylabel="validation loss", title=comparison.header["summary"])
    axes.legend(fontsize=8, title="dashed: two gradients per step", title_fontsize=8)
    figure.savefig(comparison.journal.path.with_suffix(".png"), dpi=150)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--path", help="parquet folder of cifar10, text file or folder of text")
    parser.add_argument("--methods", nargs="+", default=DEFAULT.split(), help="names of files in recipes/methods")
    parser.add_argument("--evaluations", type=int, help="gradient evaluations per run")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="of the recipe's learning rate"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="reported")
    parser.add_argument("--sweep-seed", type=int, default=0, help="the learning rate is chosen on this one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/compare_<task>.jsonl")
    arguments = parser.parse_args(argv)
    arguments.output = arguments.output or HERE / "results" / f"compare_{arguments.task}.jsonl"
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    unknown = [name for name in arguments.methods if not (METHOD_FILES / f"{name}.yaml").exists()]
    if unknown:
        known = sorted(file.stem for file in METHOD_FILES.glob("*.yaml"))
        raise SystemExit(f"Expected `--methods` out of {', '.join(known)}; got {', '.join(unknown)}.")
    comparison = Comparison(arguments)
    summaries: list[dict[str, Any]] = []
    for name in arguments.methods:
        summaries.append(comparison.summary(name))
        page = table(comparison.header, summaries, arguments.seeds)
        arguments.output.with_suffix(".md").write_text(page)
        plot(comparison, summaries, arguments.seeds)
    print(page)


if __name__ == "__main__":
    main()
