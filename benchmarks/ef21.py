"""EF21-Muon's compressors: loss against the bytes that four workers send, on scikit-learn's digits.

    python -m benchmarks.ef21 [--rates ...] [--seeds ...] [--minutes 5]
    python -m benchmarks.ef21 --table

Four workers, threads of one process, train copies of an MLP on samples of their own. All compressors get the same
rates, steps and batches, and the rate goes linearly to zero. `identity` is `gluon` on the mean gradient. Bytes are
those of one worker, the first message in full included. A second call continues where the first ended.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import lightning_gluon
from benchmarks.journal import Journal
from benchmarks.small_tasks import Task, chosen, continued

RESULTS = Path(__file__).parent / "results" / "ef21.jsonl"
WORKERS, BATCH, STEPS, EVERY = 4, 16, 240, 20
COMPRESSORS: dict[str, dict[str, Any]] = {
    "identity": {},
    "bf16": {},
    "natural": {},
    "top-k 5 %": {"compressor_share": 0.05},
    "random-k 5 %": {"compressor_share": 0.05},
    "rank-r 4": {"compressor_rank": 4},
}
RATES = (0.01, 0.02, 0.05, 0.1)
NAMES = ("compressor", "rate", "seed")
GOALS = (0.5, 0.2)  # losses


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", nargs="*", type=float, default=RATES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=STEPS)
    continued(parser, RESULTS, _run, table)


def _run(given: argparse.Namespace, journal: Journal) -> None:
    journal.header(task="digits-mlp", workers=WORKERS, batch=BATCH, steps=given.steps)
    done = {tuple(run[name] for name in NAMES) for run in journal.of("run")}
    (task,) = chosen(["digits-mlp"], None, None)
    end = time.monotonic() + 60 * given.minutes
    for seed, rate, compressor in itertools.product(given.seeds, given.rates, COMPRESSORS):
        if (compressor, rate, seed) in done:
            continue
        if time.monotonic() > end:
            return
        curve = train(task, compressor, rate, seed, given.steps)
        journal.append("run", compressor=compressor, rate=rate, seed=seed, curve=curve)
        print(compressor, rate, seed, curve[-1], flush=True)


def train(task: Task, compressor: str, rate: float, seed: int, steps: int) -> list[list[float]]:
    """Train once and return pairs of the bytes that a worker has sent and the loss on the test images."""
    torch.manual_seed(seed)
    model = task.model()
    copies = [copy.deepcopy(model) for _ in range(WORKERS)]

    def work(exchange: lightning_gluon.Exchange) -> list[list[float]]:
        net = copies[exchange.rank]
        options = {"compressor": compressor.split()[0], **COMPRESSORS[compressor]}
        optimizer = lightning_gluon.Gluon(net, rate, method="ef21-muon", workers=WORKERS, **options)
        optimizer.exchange = exchange
        generator = torch.Generator().manual_seed(1000 * seed + exchange.rank)
        curve = []
        for step, batch in enumerate(task.batches(generator, BATCH, steps), 1):
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - (step - 1) / steps)
            optimizer.step()
            if exchange.rank == 0 and (step == 1 or step % EVERY == 0):
                curve.append([exchange.sent, loss_of(net, task.evaluation()).item()])
        return curve

    return lightning_gluon.run_workers(WORKERS, work)[0]


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy of a batch."""
    return functional.cross_entropy(net(batch[0]), batch[1])


def table(runs: Iterable[dict[str, Any]]) -> str:
    """Return losses and bytes as a Markdown table, every compressor at the rate with the lowest mean loss."""
    curves: dict[str, dict[float, list[list[list[float]]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        curves[run["compressor"]][run["rate"]].append(run["curve"])
    best = {name: min(by_rate, key=lambda rate: final(by_rate[rate])) for name, by_rate in curves.items()}
    whole = curves["identity"][best["identity"]]
    goals = " | ".join(f"bytes to {goal} | share" for goal in GOALS)
    lines = [
        f"| compressor | rate | final loss (spread) | bytes sent | `identity` at as many | {goals} |",
        "|---" * (5 + 2 * len(GOALS)) + "|",
    ]
    for name, rate in best.items():
        own = curves[name][rate]
        losses = [curve[-1][1] for curve in own]
        sent = own[0][-1][0]
        cells = [name, f"{rate:g}", f"{final(own):.3f} ({max(losses) - min(losses):.3f})", f"{sent:,}"]
        cells.append(f"{loss_at(whole, sent):.3f}")
        for goal in GOALS:
            cells += _against(bytes_to(own, goal), bytes_to(whole, goal))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(own: float | None, whole: float | None) -> list[str]:
    """Return bytes, and their share of those of `identity`."""
    if own is None:
        return ["not reached", ""]
    return [f"{own:,.0f}", f"{own / whole:.2f}" if whole else ""]


def loss_at(curves: list[list[list[float]]], sent: float) -> float:
    """Return the mean loss at the last point that was reached with as many bytes."""
    losses = []
    for curve in curves:
        reached = [loss for bytes_, loss in curve if bytes_ <= sent]
        losses.append(reached[-1])
    return statistics.mean(losses)


def final(curves: list[list[list[float]]]) -> float:
    """Return the mean of the last losses."""
    return statistics.mean(curve[-1][1] for curve in curves)


def bytes_to(curves: list[list[list[float]]], goal: float) -> float | None:
    """Return the bytes sent until the mean loss over the seeds is first below a goal; `None` if it never is."""
    for points in zip(*curves, strict=True):
        if statistics.mean(loss for _, loss in points) <= goal:
            return points[0][0]
    return None


if __name__ == "__main__":
    main()
