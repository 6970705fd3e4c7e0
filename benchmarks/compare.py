"""Which method reaches which loss for the same number of gradients?

Every method gets the same number of gradient evaluations: one that takes two per step gets half the steps. Its learning
rate is swept on one seed around the one in `recipes/methods/<name>.yaml`, and the sweep is widened while its best value
lies at an edge. The numbers reported are those of other seeds at the learning rate that the sweep has chosen, so the
choice does not flatter them. All runs share model, data, batch, clipping and a cosine schedule with 5 % warmup.

    python benchmarks/compare.py --task digits
    python benchmarks/compare.py --task cifar10 --path FOLDER_WITH_PARQUET
    python benchmarks/compare.py --task text [--path TEXT_FILE]

Results are written after every run and a second call does only what is missing, so a long comparison can be stopped at
any time. Written beside the JSON: a table (.md) and a plot (.png).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from environment import environment, write_json
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the recipes are no part of the installed package

import lightning_gluon  # noqa: E402
from recipes import CausalLM, ImageClassifier, ImageData, TextData  # noqa: E402

METHOD_FILES = HERE.parent / "recipes" / "methods"
DEFAULT = "adamw muon scion gluon gluon-igt lionmuon mars-approximate mars gluon-mvr1 gluon-mvr2 gluon-mvr3 limuon-r8"
WIDEN = 3  # times a sweep may be widened, in all
POINTS = 8  # of each validation curve


@dataclass(frozen=True)
class Task:
    """What is trained on, how long, and what counts as the result.

    Args:
        summary: One line for the table.
        evaluations: Gradient evaluations per run.
        metric: What is reported beside the validation loss.
    """

    summary: str
    evaluations: int
    metric: str

    def build(self, name: str, path: str | None, seed: int) -> tuple[LightningModule, LightningDataModule]:
        """Return model and data, both a function of the seed."""
        if name == "text":
            config = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3}
            config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
            source: dict[str, Any] = {"source": "files", "path": path} if path else {"source": "python"}
            text = TextData(**source, max_bytes=2_000_000, vocab_size=1024, seq_len=64, batch_size=16, seed=seed)
            text.max_val_sequences = 256
            return CausalLM("qwen2", config), text
        if name == "cifar10":
            if path is None:
                raise SystemExit("Expected `--path FOLDER` with train*.parquet and test*.parquet for --task cifar10.")
            kwargs = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
            augment: dict[str, Any] = {"crop_padding": 4, "flip": True, "val_fraction": 0.04}
            images = ImageData("parquet", path, batch_size=64, seed=seed, **augment)
        else:
            kwargs = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4}
            images = ImageData(batch_size=64, crop_padding=1, val_fraction=0.2, seed=seed)
        return ImageClassifier("vit_tiny_patch16_224", 10, model_kwargs=kwargs), images


TASKS = {
    "digits": Task("ViT (0.2 M) on scikit-learn's digits, batch 64", 400, "val/accuracy"),
    "cifar10": Task("ViT (0.5 M) on CIFAR-10, batch 64", 800, "val/accuracy"),
    "text": Task("Qwen2 (0.7 M) on 2 MB of text, batch 16 x 64", 800, "val/perplexity"),
}


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
        self.points.append({"evaluations": trainer.optimizers[0].gradient_evaluations, **found})


def settings(name: str) -> dict[str, Any]:
    """Return the arguments of `configure_optimizers` that a method's recipe file holds."""
    return yaml.safe_load((METHOD_FILES / f"{name}.yaml").read_text())["optimizer"]


def gradients(name: str) -> int:
    """Return the gradients that a step of a method costs."""
    module = torch.nn.Linear(2, 2)
    optimizer = lightning_gluon.configure_optimizers(module, settings(name)["method"], lr=0.1)
    return 2 if optimizer.reference_point == "previous" else 1


def train(task: str, path: str | None, name: str, lr: float, seed: int, evaluations: int) -> dict[str, Any]:
    """Train once and return the result; a run that diverges returns infinite losses."""
    seed_everything(seed, verbose=False)
    module, data = TASKS[task].build(task, path, seed)
    steps = evaluations // gradients(name)
    given = {"schedule": "cosine", "warmup": 0.05, **settings(name), "lr": lr, "total_steps": steps}

    def configure(self: LightningModule) -> Any:
        return lightning_gluon.configure_optimizers(self, **given)

    module.configure_optimizers = configure.__get__(module)  # type: ignore[method-assign]
    curve = Curve()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "check_val_every_n_epoch": None}
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=max(1, steps // POINTS),
        gradient_clip_val=1.0,
        callbacks=[curve],
        **options,
    )
    start = time.perf_counter()
    failure = None
    try:
        trainer.fit(module, datamodule=data)
        trainer.validate(module, datamodule=data, verbose=False)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    except FloatingPointError as error:
        metrics, failure = {"val/loss": math.inf}, str(error)[:120]
    return {
        "method": name,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "evaluations": trainer.optimizers[0].gradient_evaluations,
        "seconds": round(time.perf_counter() - start, 1),
        "metrics": metrics,
        "curve": curve.points,
        "train_loss": [round(loss, 4) for loss in curve.losses[:: max(1, steps // 100)]],
        "failure": failure,
    }


class Comparison:
    """The runs of one task, kept in a file and filled in where they are missing.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.file = arguments, arguments.output
        self.budget = arguments.evaluations or TASKS[arguments.task].evaluations
        found = json.loads(self.file.read_text()) if self.file.exists() else {}
        header = {"task": arguments.task, **asdict(TASKS[arguments.task]), "evaluations": self.budget}
        if found and {k: found["header"][k] for k in header} != header:
            raise SystemExit(f"'{self.file}' holds another comparison. Give another --output.")
        self.report = found or {"header": header, "environment": environment(), "runs": []}

    def run(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        """Return a run, from the file where it is there."""
        for run in self.report["runs"]:
            if (run["method"], run["lr"], run["seed"]) == (name, lr, seed):
                return run
        done = train(self.arguments.task, self.arguments.path, name, lr, seed, self.budget)
        self.report["runs"].append(done)
        write_json(self.file, self.report)
        print(f"{name:18} lr {lr:<8g} seed {seed}  val/loss {_loss(done):.4f}  {done['seconds']} s", flush=True)
        return done

    def sweep(self, name: str) -> list[float]:
        """Return the learning rates tried on the sweep's seed, the best one first."""
        centre = settings(name)["lr"]
        rates = [_round(centre * factor) for factor in self.arguments.factors]
        for widened in range(WIDEN + 1):
            ranked = sorted(rates, key=lambda lr: _rank(self.run(name, lr, self.arguments.sweep_seed)))
            low, high = min(rates), max(rates)
            if widened == WIDEN or ranked[0] not in (low, high):
                return ranked
            rates.append(_round(low / 2 if ranked[0] == low else high * 2))
        return ranked

    def row(self, name: str) -> dict[str, Any]:
        """Sweep a method, run its best learning rate on the other seeds, and summarise."""
        rates = self.sweep(name)
        runs = [self.run(name, rates[0], seed) for seed in self.arguments.seeds]
        metric = self.report["header"]["metric"]
        losses = [_loss(run) for run in runs]
        values = [run["metrics"].get(metric, math.nan) for run in runs]
        return {
            "method": name,
            "gradients per step": gradients(name),
            "steps": runs[0]["steps"],
            "evaluations": runs[0]["evaluations"],
            "sweep": sorted(rates),
            "lr": rates[0],
            "at_edge": rates[0] in (min(rates), max(rates)),
            "val/loss": [statistics.mean(losses), _spread(losses)],
            metric: [statistics.mean(values), _spread(values)],
            "seconds": statistics.mean(run["seconds"] for run in runs),
        }


def _loss(run: dict[str, Any]) -> float:
    return run["metrics"]["val/loss"]


def _rank(run: dict[str, Any]) -> float:
    return _loss(run) if math.isfinite(_loss(run)) else math.inf


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def table(report: dict[str, Any], seeds: list[int]) -> str:
    """Return the rows as Markdown, best first."""
    header, metric = report["header"], report["header"]["metric"]
    lines = [
        f"{header['summary']}; {header['evaluations']} gradient evaluations per run; {len(seeds)} seeds, mean and",
        "standard deviation; the learning rates tried are in brackets, `*` marks a best one at the edge.",
        "",
        f"| method | val/loss | {metric} | lr | steps | gradients | s/run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(report["rows"], key=lambda row: row["val/loss"][0]):
        loss, value = ("{:.4f} ± {:.4f}".format(*row[key]) for key in ("val/loss", metric))
        tried = ", ".join(f"{lr:g}" for lr in row["sweep"])
        rate = f"{row['lr']:g}{'*' if row['at_edge'] else ''} [{tried}]"
        cells = (row["method"], loss, value, rate, row["steps"], row["evaluations"], f"{row['seconds']:.0f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], file: Path, seeds: list[int]) -> None:
    """Draw validation loss against gradient evaluations, the mean over the seeds, one line per method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for index, row in enumerate(sorted(report["rows"], key=lambda row: row["val/loss"][0])):
        best = [run for run in report["runs"] if (run["method"], run["lr"]) == (row["method"], row["lr"])]
        runs = [run for run in best if run["seed"] in seeds]
        curves = [run["curve"] for run in runs if run["failure"] is None]
        if not curves:
            continue
        points = [[point["evaluations"], point["val/loss"]] for curve in curves for point in curve]
        grid = sorted({x for x, _ in points})
        means = [statistics.mean(y for x, y in points if x == g) for g in grid]
        style = "--" if row["gradients per step"] == 2 else "-"
        axes.plot(grid, means, style, color=f"C{index % 10}", label=f"{row['method']} (lr {row['lr']:g})")
    axes.set(xlabel="gradient evaluations", ylabel="validation loss", title=report["header"]["summary"])
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main() -> None:
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
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/compare_<task>.json")
    arguments = parser.parse_args()
    arguments.output = arguments.output or HERE / "results" / f"compare_{arguments.task}.json"
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    unknown = [name for name in arguments.methods if not (METHOD_FILES / f"{name}.yaml").exists()]
    if unknown:
        known = sorted(file.stem for file in METHOD_FILES.glob("*.yaml"))
        raise SystemExit(f"Expected `--methods` out of {', '.join(known)}; got {', '.join(unknown)}.")
    comparison = Comparison(arguments)
    report = comparison.report
    report["rows"] = [comparison.row(name) for name in arguments.methods]
    write_json(arguments.output, report)
    text = table(report, arguments.seeds)
    arguments.output.with_suffix(".md").write_text(text)
    plot(report, arguments.output.with_suffix(".png"), arguments.seeds)
    print(text)


if __name__ == "__main__":
    main()
