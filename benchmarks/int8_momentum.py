"""Does a momentum in 8 bits train as well as one in fp32?

Tasks, model, data, schedule and the count of gradients are those of `benchmarks.compare`, for `gluon` at one learning
rate. Seeds are those of weights, order and augmentation, and both dtypes see the same ones.

    python -m benchmarks.int8_momentum --task cifar10 --path FOLDER_WITH_PARQUET
    python -m benchmarks.int8_momentum --task text
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import torch

from benchmarks import compare
from benchmarks.journal import Journal

DTYPES = (None, "int8")
KEYS = ("task", "momentum_dtype", "lr", "seed", "evaluations")


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, a row after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=compare.TASKS, default="digits")
    parser.add_argument("--path", help="as in benchmarks.compare")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--evaluations", type=int, help="gradient evaluations per run")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/int8_momentum.jsonl"))
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    journal = Journal(given.output)
    budget = given.evaluations or compare.TASKS[given.task].evaluations
    for seed in given.seeds:
        for dtype in DTYPES:
            key = dict(zip(KEYS, (given.task, dtype, given.lr, seed, budget), strict=True))
            if journal.find("run", **key):
                continue
            options = {**compare.settings("gluon"), "lr": given.lr, "momentum_dtype": dtype}
            done = compare.fit(given.task, given.path, options, seed, budget)
            row = journal.append("run", **{**done, **key})
            print(*(f"{name} {row[name]}" for name in KEYS), row["metrics"], flush=True)


if __name__ == "__main__":
    main()
