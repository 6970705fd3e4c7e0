"""Compares the steps of every method between two checkouts, side by side on one machine.

    python -m benchmarks.trajectories --against dc896e1           # a revision, a folder, or a file written before
    python -m benchmarks.trajectories --write trajectories.pt

Every method runs on small models twice: in fp64 with `orthogonalizer="svd"`, and in fp32 with its defaults. A gradient
is `draw + W * X`: the draw comes from the global random stream, `W` is fixed. It depends on the weights, so a wrong
reference point shows, and on the random state, so a second evaluation that does not restore it shows.
The last cases train under Lightning's Trainer, where callbacks supply the second gradient.

A change that keeps the mathematics has differences of 0, or of 1e-8 at most in fp64 where the order of operations
changed. In fp32 the order alone moves a 16-bit orthogonalization by a percent of the distance, so the bound is wider.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if __package__:
    from benchmarks.trajectory_cases import SEED, TRAINED, Case, all_cases, build
else:  # run as a file on the package of another checkout
    from trajectory_cases import SEED, TRAINED, Case, all_cases, build

ROOT = Path(__file__).resolve().parents[1]
LR = 0.02
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
OPTIONS: dict[str, dict[str, Any]] = {
    "fp64": {"orthogonalizer": "svd", "orthogonalizer_dtype": "float64"},
    "fp32": {},
}
BOUND = 1e-8  # of weights in fp64
LOOSE = 0.05  # of the distance a weight has moved, in fp32
ABSENT = 2  # index of the step in which some parameters have no gradient

# ---------------------------------------------------------------------- one run


@dataclass
class Trajectory:
    """Roles of the parameters and their weights after some of the steps."""

    names: list[str]
    roles: dict[str, str]
    start: list[Tensor]
    weights: dict[int, list[Tensor]]
    refusal: str = ""


Trajectories = dict[str, Trajectory]


def kept_steps(steps: int) -> set[int]:
    """Return the steps whose weights are kept: the first four, and powers of two after them, and the last."""
    powers = {2**power for power in range(3, 20)}
    return {step for step in {1, 2, 3, 4, steps} | powers if step <= steps}


def role_groups(module: nn.Module, roles: dict[str, str]) -> list[dict[str, Any]]:
    """Return one group per role, in the words of this checkout: once, `input` was a flag on `embedding`."""
    from lightning_gluon import METHODS

    known = METHODS["gluon"].rules
    named = dict(module.named_parameters())
    groups = []
    for role in dict.fromkeys(roles.values()):
        names = [name for name, own in roles.items() if own == role]
        spoken = {"role": role} if role in known else {"role": "embedding", "input_layer": True}
        groups.append({"params": [named[name] for name in names], "param_names": names, **spoken})
    return groups


def roles_of(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Return the role of every parameter; a group called `embedding-input` holds input layers."""
    roles = {}
    for group in optimizer.param_groups:
        role = "input" if group.get("input_layer") else group["role"]
        roles.update(dict.fromkeys(group["param_names"], role))
    return dict(sorted(roles.items()))


def make(case: Case, module: nn.Module, options: dict[str, Any], steps: int) -> tuple[Any, Any]:
    """Return the optimizer of a case and its scheduler, if it has one."""
    import lightning_gluon

    settings = {**options, **case.options}
    if case.groups:
        roles = roles_of(lightning_gluon.Gluon(module, LR, method=case.method))
        return lightning_gluon.Gluon(role_groups(module, roles), LR, method=case.method, **settings), None
    made = lightning_gluon.configure_optimizers(
        module, case.method, lr=LR, schedule=case.schedule, total_steps=steps, **settings
    )
    if isinstance(made, dict):
        return made["optimizer"], made["lr_scheduler"]["scheduler"]
    return made, None


def run(case: Case, model: str, precision: str, steps: int) -> Trajectory:
    """Run one case on one model.

    Args:
        case: The method, its options and the events.
        model: A key of `MODELS`.
        precision: `fp64` (exact polar factors) or `fp32` (the method's defaults).
        steps: Number of steps.

    Returns:
        The weights along the way.
    """
    module = build(model, DTYPES[precision])
    optimizer, scheduler = make(case, module, OPTIONS[precision], steps)
    named = dict(module.named_parameters())
    generator = torch.Generator().manual_seed(SEED + 1)
    pull = {name: torch.rand(p.shape, generator=generator, dtype=p.dtype) for name, p in named.items()}
    found = Trajectory(list(named), roles_of(optimizer), [p.detach().clone() for p in named.values()], {})
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            for index, (name, parameter) in enumerate(named.items()):
                draw = torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype)
                parameter.grad = draw + pull[name] * parameter.detach()
                if case.poison and step == 3 and index == 0:
                    parameter.grad.fill_(torch.nan)
                if case.absent and step == ABSENT and index % 3 == 1:
                    parameter.grad = None
            return torch.zeros(())

        torch.manual_seed(SEED + 2 + step)
        optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()
        if case.resume and step == steps // 2:
            saved = optimizer.state_dict()
            optimizer, scheduler = make(case, module, OPTIONS[precision], steps)
            optimizer.load_state_dict(saved)
        if step + 1 in kept_steps(steps):
            found.weights[step + 1] = [p.detach().clone() for p in named.values()]
    return found


# ---------------------------------------------------------------------- under a Trainer


def train(method: str, options: dict[str, Any], precision: str, steps: int) -> Trajectory:
    """Train a small network with dropout under the Trainer, two micro-batches per step."""
    import lightning
    from lightning.pytorch import LightningModule, Trainer

    import lightning_gluon

    class Regression(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 8), nn.Linear(8, 2))

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            inputs, targets = batch.split((6, 2), dim=1)
            return (self.net(inputs) - targets).square().mean()

        def configure_optimizers(self) -> Any:
            return lightning_gluon.configure_optimizers(self, method, lr=LR, **OPTIONS[precision], **options)

    lightning.seed_everything(SEED, verbose=False)
    module = Regression().to(DTYPES[precision])
    rows = torch.randn(8 * steps, 8, dtype=torch.float64).to(DTYPES[precision])
    trainer = Trainer(
        max_steps=steps,
        accumulate_grad_batches=2,
        accelerator="cpu",
        precision="64-true" if precision == "fp64" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = [p.detach().clone() for p in module.parameters()]
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=4))
    end = [p.detach().clone() for p in module.parameters()]
    names = [name for name, _ in module.named_parameters()]
    return Trajectory(names, roles_of(trainer.optimizers[0]), start, {steps: end})


# ---------------------------------------------------------------------- files


def attempt(action: Callable[[], Trajectory]) -> Trajectory:
    """Return what a run returns; one that is refused is a row too, and does not end the others."""
    try:
        return action()
    except Exception as error:
        return Trajectory([], {}, [], {}, f"{type(error).__name__}: {error}".splitlines()[0])


def trajectories(chosen: list[str], steps: int, with_trainer: bool) -> Iterator[tuple[str, Trajectory]]:
    """Yield every trajectory of this checkout with its key: case, model and precision."""
    for case in all_cases(chosen):
        for model in case.models:
            for precision in DTYPES:
                found = attempt(lambda: run(case, model, precision, steps))  # noqa: B023
                yield f"{case.name()} | {model} | {precision}", found
    trained = TRAINED if with_trainer else ()
    for method, options in trained:
        for precision in DTYPES:
            if not chosen or method in chosen:
                found = attempt(lambda: train(method, options, precision, steps))  # noqa: B023
                yield f"{Case(method, options).name()} | trainer | {precision}", found


def write(path: Path, chosen: list[str], steps: int, with_trainer: bool) -> None:
    """Write the trajectories of the `lightning_gluon` that is imported.

    Args:
        path: The file; it is loaded by `torch.load`.
        chosen: Methods; empty for all.
        steps: Steps of every run.
        with_trainer: Whether to train under Lightning too.
    """
    import lightning_gluon

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = {key: vars(found) for key, found in trajectories(chosen, steps, with_trainer)}
    torch.save({"package": str(Path(lightning_gluon.__file__).parent), "rows": rows}, path)


def collect(root: Path, arguments: argparse.Namespace) -> Trajectories:
    """Run this script on the package in `root` in a process of its own, and read what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trajectories.pt"
        command = [sys.executable, __file__, "--write", str(path), "--steps", str(arguments.steps)]
        command += ["--methods", *arguments.methods] if arguments.methods else []
        command += ["--no-trainer"] if arguments.no_trainer else []
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=folder, env=environment, check=True)
        saved = torch.load(path, weights_only=True)
    if Path(saved["package"]) != root.resolve() / "lightning_gluon":
        raise RuntimeError(f"Expected the package of {root}, but {saved['package']} was imported.")
    return read(saved)


def read(saved: dict[str, Any]) -> Trajectories:
    """Return the trajectories of a loaded file."""
    return {key: Trajectory(**row) for key, row in saved["rows"].items()}


def collect_other(other: str, arguments: argparse.Namespace) -> Trajectories:
    """Return the trajectories of a folder, of a file written before, or of a git revision of this repository."""
    path = Path(other)
    if path.is_dir():
        return collect(path.resolve(), arguments)
    if path.is_file():
        return read(torch.load(path, weights_only=True))
    archive = subprocess.run(["git", "archive", other, "lightning_gluon"], cwd=ROOT, check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
            packed.extractall(folder, filter="data")
        return collect(Path(folder).resolve(), arguments)


# ---------------------------------------------------------------------- the comparison


@dataclass
class Difference:
    """The largest distance of two trajectories over all parameters and kept steps, and the first place that differs."""

    weights: float = 0.0
    share: float = 0.0
    notes: tuple[str, ...] = ()
    where: str = ""

    def worst(self, other: Difference) -> Difference:
        """Return the larger of both in every respect, and the first place of both."""
        notes = tuple(sorted({*self.notes, *other.notes}))
        where = self.where or other.where
        return Difference(max(self.weights, other.weights), max(self.share, other.share), notes, where)


def compare(one: Trajectory, two: Trajectory) -> Difference:
    """Return the largest difference of weights, and the largest one as a share of the distance moved.

    Args:
        one: A trajectory.
        two: Another one of the same case.

    Returns:
        The largest `|X - X'|` of an entry, the largest `||X - X'|| / ||X - X_0||` of a parameter, and notes on roles
        that differ. A run that was refused, or that holds NaN, is infinitely far from any other.
    """
    refusals = tuple(f"refused: {side.refusal}" for side in (one, two) if side.refusal)
    if refusals:
        return Difference(math.inf, math.inf, refusals)
    found = Difference()
    for name, role in one.roles.items():
        if two.roles.get(name) != role:
            found = found.worst(Difference(notes=(f"role of {name}: {role} here, {two.roles.get(name)} there",)))
    for step, weights in one.weights.items():
        for index, weight in enumerate(weights):
            apart = (weight - two.weights[step][index]).double().nan_to_num(nan=math.inf)
            moved = (weight - one.start[index]).double().norm().item()
            distance = apart.norm().item()
            share = distance / moved if moved else float(distance > 0)
            where = f"{one.names[index]} after step {step}" if distance else ""
            found = found.worst(Difference(apart.abs().max().item(), share, where=where))
    return found


def by_case(here: Trajectories, there: Trajectories) -> dict[tuple[str, str], Difference]:
    """Return the largest difference of every case and precision, over all models."""
    worst: dict[tuple[str, str], Difference] = {}
    for key in sorted(here.keys() & there.keys()):
        name, _, precision = key.split(" | ")
        known = worst.get((name, precision), Difference())
        worst[name, precision] = known.worst(compare(here[key], there[key]))
    return worst


def by_method(cases: dict[tuple[str, str], Difference]) -> dict[tuple[str, str], Difference]:
    """Return the largest difference of every method and precision, over all its cases."""
    worst: dict[tuple[str, str], Difference] = {}
    for (name, precision), found in cases.items():
        key = (name.split()[0], precision)
        worst[key] = worst.get(key, Difference()).worst(found)
    return worst


def is_far(precision: str, found: Difference) -> bool:
    """Tell whether a difference is beyond the bound of its precision."""
    return found.weights > BOUND if precision == "fp64" else found.share > LOOSE


def print_rows(rows: dict[tuple[str, str], Difference]) -> None:
    """Print one line per row: the largest difference, also as a share of the distance moved, and where it is."""
    for (name, precision), found in sorted(rows.items()):
        note = f"{'FAR' if is_far(precision, found) else 'near'}: {found.where}" if found.weights else "equal"
        print(f"{name[:64]:64} {precision} {found.weights:9.1e} {found.share:9.1e}  {note}")


def report(here: Trajectories, there: Trajectories) -> bool:
    """Print the largest difference of every method, then the cases that differ.

    Args:
        here: Trajectories of this checkout.
        there: Those of the other one.

    Returns:
        Whether all differences are within their bounds, and every case that runs there runs here.
    """
    cases = by_case(here, there)
    different = {key: found for key, found in cases.items() if found.weights}
    far = [key for key, found in cases.items() if is_far(key[1], found)]
    print(f"{'method':64} {'':4} {'largest':>9} {'of moved':>9}")
    print_rows(by_method(cases))
    if different:
        print("\ncases that differ")
        print_rows(different)
    notes = {note for found in cases.values() for note in found.notes}
    alone = [f"only {'here' if key in here else 'there'}: {key}" for key in here.keys() ^ there.keys()]
    print("", *sorted(notes), *sorted(alone), sep="\n")
    equal = len(cases) - len(different)
    print(f"{len(cases)} rows of {len(here)} trajectories: {equal} equal, {len(far)} beyond {BOUND:g} or {LOOSE:g}")
    return not far and not there.keys() - here.keys()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="git revision, folder with the package, or a file that --write made")
    parser.add_argument("--write", type=Path, help="file for the trajectories of the package that is imported")
    parser.add_argument("--methods", nargs="+", default=[], help="default: all")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--no-trainer", action="store_true", help="leave out the runs under Lightning's Trainer")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.methods, arguments.steps, not arguments.no_trainer)
    elif arguments.against:
        there = collect_other(arguments.against, arguments)
        sys.exit(not report(collect(ROOT, arguments), there))
    else:
        parser.error("expected --write or --against")


if __name__ == "__main__":
    main()
