"""All that a GPU has to show, in two commands of at most six minutes each; a line per row, written at once.

    python -m benchmarks.gpu --part 1                             correctness, the step, a whole training step, memory
    python -m benchmarks.gpu --part 2 --data FOLDER               trainings
    python -m benchmarks.gpu --dry-run                            the plan with its minutes
    python -m benchmarks.gpu --part 1 --tiny                      the same on a CPU at tiny size

Sections run in the order of the plan. Before each of its rows a section looks at the clock: what would begin after
`--limit` seconds is written down as left out. A row that fails says why, and the next one goes on. Models come from
configurations, with random weights. FOLDER holds `cifar10/*.parquet` and, for the language models, `text/*.txt`; tokens
are kept in `tokens` beside them, so a first call on a machine without a GPU makes them in advance (`--prepare`).

Minutes of the plan are estimates for one H200: nothing here has run on a GPU yet.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import lightning_gluon
from benchmarks import cifarnet, gpu_checks, memory, real_sizes, step
from benchmarks.journal import Journal

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What all sections are given.

    Args:
        device: `cuda` or `cpu`.
        tiny: Whether sizes are those of a test.
        data: Folder with data, if there is one.
        until: When the last row may begin, by `time.monotonic`.
    """

    device: str
    tiny: bool
    data: Path | None
    until: float

    @property
    def late(self) -> bool:
        """True if no further row may begin."""
        return time.monotonic() > self.until


@dataclass(frozen=True)
class Section:
    """A part of the plan.

    Args:
        name: Its name.
        minutes: What it takes on an H200, estimated.
        rows: Makes its rows.
        content: One line for the plan.
    """

    name: str
    minutes: float
    rows: Callable[[Setting], Rows]
    content: str


# ---------------------------------------------------------------- part 1

STEP_ROWS = [
    "gluon", "gluon (no check)", "muon", "lionmuon", "pytorch_optimizer Muon", "pytorch_optimizer SCION", "timm Muon",
    "fused AdamW",
]  # fmt: skip
STEP_MODELS = ("vit_s", "vit_b", "mamba_130m", "qwen2_5")


def _check(part: Callable[[str, bool], Rows]) -> Callable[[Setting], Rows]:
    def rows(setting: Setting) -> Rows:
        yield from part(setting.device, setting.tiny)

    return rows


def steps(setting: Setting) -> Rows:
    """Yield the time of an optimizer step beside its neighbours and its floor, model by model."""
    rates = {"tflop_s": 1.0, "gb_s": 1.0} if setting.tiny else step.rates(setting.device)
    yield {"rates": rates}
    names = [step.BASELINE, "gluon"] if setting.tiny else [step.BASELINE, step.SAME_DTYPE, *STEP_ROWS]
    rows = {name: step.ROWS[name] for name in names}
    for model in ("vit_ti/12",) if setting.tiny else STEP_MODELS:
        if setting.late:
            yield {"model": model, "left_out": True}
            continue
        problem = step.Problem(model, setting.device)
        floor = step.floors(problem, rates)
        for name, row in step.measure(problem, rows, 2 if setting.tiny else 20):
            over = {"over_floor": row["median_s"] / floor["floor_s"]} if "median_s" in row else {}
            yield {"model": model, "row": name, **row, **over}
        yield {"model": model, "floor": floor}
        del problem
        _free(setting)


TRAINED: dict[str, Callable[[nn.Module], Any] | None] = {
    "forward and backward": None,
    "fused AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True),
    "torch Muon + AdamW": memory.Pair,
    "gluon": lambda model: lightning_gluon.Gluon(model, lr=1e-4),
    "gluon, int8": lambda model: lightning_gluon.Gluon(model, lr=1e-4, momentum_dtype="int8"),
    "limuon r=16": lambda model: lightning_gluon.Gluon(model, lr=1e-4, method="limuon", rank=16, reference="step8"),
}


def training_step(setting: Setting) -> Rows:
    """Yield the time of a whole training step of Qwen2.5-0.5B at 16 x 1024 tokens, and its peak memory."""
    batch, length = (2, 16) if setting.tiny else (16, 1024)
    for name, optimizer_of in TRAINED.items():
        if setting.late:
            yield {"row": name, "left_out": True}
            continue
        config = memory.qwen2_5_config(tiny=setting.tiny)
        yield {"row": name, **_failing(lambda: _train(setting, config, optimizer_of, batch, length))}  # noqa: B023
        _free(setting)


def _train(setting: Setting, config: Any, optimizer_of: Any, batch: int, length: int) -> dict[str, Any]:
    from transformers import Qwen2ForCausalLM

    with torch.device(setting.device):
        model = Qwen2ForCausalLM(config)
        tokens = torch.randint(0, config.vocab_size, (batch, length))
    optimizer = None if optimizer_of is None else optimizer_of(model)
    if getattr(optimizer, "reference_point", None) is not None:
        optimizer.two_point = "loop"
    cuda = setting.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def loss_of(net: nn.Module) -> torch.Tensor:
        with torch.autocast(setting.device, torch.bfloat16, enabled=cuda):
            logits = net(input_ids=tokens, use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())

    seconds, timer = [], step.clock(setting.device)
    for _ in range(3 if setting.tiny else 7):
        if optimizer is None:
            seconds.append(timer(lambda: loss_of(model).backward()))
        else:
            seconds.append(timer(lambda: memory.train(model, optimizer, loss_of)))
    count = sum(parameter.numel() for parameter in model.parameters())
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {"parameters": count, "median_s": statistics.median(seconds[2:]), "peak_bytes": peak}


# ---------------------------------------------------------------- part 2

NETS: dict[str, Callable[[nn.Module], Any]] = {
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=0.003, weight_decay=0.01),
    "muon": lambda net: lightning_gluon.Gluon(net, lr=0.02, method="muon"),
    "gluon": lambda net: lightning_gluon.Gluon(net, lr=0.02),
    "gluon-nesterov": lambda net: lightning_gluon.Gluon(net, lr=0.02, method="gluon-nesterov"),
}
SEEDS = 5


def cifar(setting: Setting) -> Rows:
    """Yield accuracies of CifarNet, seed by seed, so that a cut-off run has all methods."""
    data = _images(setting)
    for seed in range(1 if setting.tiny else SEEDS):
        for name, optimizer_of in NETS.items():
            if setting.late:
                yield {"row": name, "seed": seed, "left_out": True}
                continue
            sizes = {"epochs": 1, "batch": 8, "share": 16} if setting.tiny else {}
            start = time.perf_counter()
            found = _failing(lambda: cifarnet.train(data, optimizer_of, seed=seed, **sizes))  # noqa: B023
            yield {"row": name, "seed": seed, **found, "seconds": time.perf_counter() - start}
    _free(setting)


def _images(setting: Setting) -> cifarnet.Images:
    if setting.tiny:
        pixels, labels = torch.randint(0, 256, (32, 3, 32, 32)), torch.arange(32) % 10
        return cifarnet.Images(cifarnet.normalized(pixels), labels, cifarnet.normalized(pixels), labels)
    if setting.data is None:
        raise ValueError("Expected `--data FOLDER` with `cifar10/*.parquet` for CifarNet, but got none.")
    from lightning_gluon.tasks import ImageData

    module = ImageData("parquet", str(setting.data / "cifar10"), val_fraction=0.0)
    module.setup("fit")
    parts = []
    for name in ("train", "test"):
        split = module.splits[name]
        pixels = split.images(range(len(split)), None).to(setting.device)
        parts += [cifarnet.normalized(pixels), split.labels.to(setting.device)]
    return cifarnet.Images(*parts)


LANGUAGE_ROWS = ("adamw", "muon", "gluon", "gluon-nesterov")
LANGUAGE_STEPS = {"qwen2_5": 100, "mamba": 100}


def language(model: str) -> Callable[[Setting], Rows]:
    """Return a section of trainings of one language model at real size, on files of text."""

    def rows(setting: Setting) -> Rows:
        data = None
        for method in LANGUAGE_ROWS[: 1 if setting.tiny else None]:
            if setting.late:
                yield {"model": model, "row": method, "left_out": True}
                continue
            config = _language_configuration(setting, model, method)
            if data is None:
                data = real_sizes.built(config["data"])
            count = 2 if setting.tiny else LANGUAGE_STEPS[model]
            yield {"model": model, "row": method, **real_sizes.train(config, data, count)}
            _free(setting)

    return rows


def _language_configuration(setting: Setting, model: str, method: str) -> dict[str, Any]:
    config = real_sizes.configuration(model, method, tiny=setting.tiny)
    if setting.data is None:
        return config
    given = {"source": "files", "path": str(setting.data / "text"), "cache_dir": str(setting.data / "tokens")}
    return real_sizes.merge(config, {"data": {"init_args": given}})


PARTS = {
    1: (
        Section("lmo", 0.4, _check(gpu_checks.lmo), "gap of the LMO in fp16, bf16, TF32 and fp32, five and six steps"),
        Section("against CPU", 0.4, _check(gpu_checks.against_cpu), "weights of every method against those on a CPU"),
        Section("waits", 0.1, _check(gpu_checks.waits), "whether a step waits for the device"),
        Section("step", 1.8, steps, f"an optimizer step on {', '.join(STEP_MODELS)}, its ratios and its floor"),
        Section("training step", 1.2, training_step, "Qwen2.5-0.5B at 16 x 1024 tokens: time and peak memory"),
        Section("graphs", 1.5, _check(gpu_checks.graphs), "compiled and captured steps against eager ones"),
    ),
    2: (
        Section("cifarnet", 2.6, cifar, f"CifarNet, 8 epochs, {SEEDS} seeds, of {', '.join(NETS)}"),
        Section("qwen2_5", 2.6, language("qwen2_5"), f"Qwen2.5-0.5B, 100 steps, of {', '.join(LANGUAGE_ROWS)}"),
        Section("mamba", 0.7, language("mamba"), "Mamba-130M, 100 steps of the same, as far as the time goes"),
    ),
}


def _failing(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a call finds, or why it failed."""
    try:
        return call()
    except (RuntimeError, ValueError, TypeError, ImportError, ArithmeticError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _free(setting: Setting) -> None:
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()


def run(section: Section, setting: Setting, journal: Journal) -> None:
    """Write the rows of a section, and print them."""
    start = time.perf_counter()
    rows = section.rows(setting)
    while True:
        if setting.late:
            journal.append("left out", section=section.name)
            break
        try:
            row = next(rows, None)
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            row, rows = {"error": f"{type(error).__name__}: {error}"[:300]}, iter(())
        if row is None:
            break
        print(section.name, journal.append("run", section=section.name, **row), flush=True)
    journal.append("section", section=section.name, seconds=round(time.perf_counter() - start, 1))


def show_plan() -> None:
    """Print the sections of both parts with their minutes."""
    for part, sections in PARTS.items():
        total = sum(section.minutes for section in sections)
        print(f"part {part}: {total:.1f} minutes")
        for section in sections:
            print(f"  {section.minutes:.1f}  {section.name:14} {section.content}")


def main(argv: list[str] | None = None) -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=PARTS, default=1)
    parser.add_argument("--data", type=Path, help="folder with cifar10 and text, for part 2")
    parser.add_argument("--limit", type=float, default=350.0, help="seconds after which no further row begins")
    parser.add_argument("--sections", nargs="+", help="names of sections; default: all of the part")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its minutes")
    parser.add_argument("--prepare", action="store_true", help="make the tokens of part 2, on any machine")
    parser.add_argument("--tiny", action="store_true", help="all of it at tiny size, on a CPU")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.jsonl"))
    given = parser.parse_args(argv)
    if given.dry_run:
        return show_plan()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    device = "cpu" if given.tiny else "cuda"
    setting = Setting(device, given.tiny, given.data, time.monotonic() + given.limit)
    if given.prepare:
        for model in LANGUAGE_STEPS:
            real_sizes.built(_language_configuration(setting, model, "adamw")["data"]).prepare_data()
        return None
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("Expected a CUDA device, but found none. Try the same with --tiny.")
    journal = Journal(given.output)
    for section in PARTS[given.part]:
        if given.sections is None or section.name in given.sections:
            run(section, setting, journal)
    return None


if __name__ == "__main__":
    main()
