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
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.trajectory_runs import Trajectories, Trajectory, read, write

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lightning_gluon"
BOUND = 1e-8  # of weights in fp64
LOOSE = 0.05  # of the distance a weight has moved, in fp32

Key = tuple[str, str]  # case or method, and precision


# ---------------------------------------------------------------------- the two sides


@contextmanager
def alone(checkout: str) -> Iterator[Path]:
    """Provide a folder that holds the package of a checkout and nothing else.

    Args:
        checkout: A folder that holds the package, or a git revision of this repository.

    Yields:
        The folder, which is temporary.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        given = Path(checkout)
        if given.is_dir():
            (folder / PACKAGE).symlink_to(given.resolve() / PACKAGE)
        else:
            command = ["git", "archive", checkout, PACKAGE]
            archive = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
            with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
                packed.extractall(folder, filter="data")
        yield folder


def collect(checkout: str, arguments: argparse.Namespace) -> Trajectories:
    """Take the steps of a checkout in a process of its own.

    Args:
        checkout: A folder that holds the package, or a git revision of this repository.
        arguments: Of the command line: `steps`, `methods`, `no_trainer`.

    Returns:
        Its trajectories.

    Raises:
        RuntimeError: If the process imported another package than that of the checkout.
    """
    with alone(checkout) as folder:
        path = folder / "trajectories.pt"
        command = [sys.executable, "-m", "benchmarks.trajectories", "--write", str(path)]
        command += ["--steps", str(arguments.steps)]
        if arguments.methods:
            command += ["--methods", *arguments.methods]
        if arguments.no_trainer:
            command.append("--no-trainer")
        search = os.pathsep.join([str(folder), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=folder, env=environment, check=True)
        package, rows = read(path)
        if package != folder / PACKAGE:
            raise RuntimeError(f"Expected the package of {checkout!r}, but '{package}' was imported.")
    return rows


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
        weights = max(self.weights, other.weights)
        share = max(self.share, other.share)
        notes = {*self.notes, *other.notes}
        return Difference(weights, share, tuple(sorted(notes)), self.where or other.where)

    def is_far(self, precision: str) -> bool:
        """Tell whether it is beyond the bound of a precision."""
        if precision in EXACT:
            return self.weights > BOUND
        return self.share > LOOSE


EXACT = ("fp64",)


def compare(here: Trajectory, there: Trajectory) -> Difference:
    """Return how far two trajectories of one case lie apart.

    Args:
        here: A trajectory.
        there: Another one.

    Returns:
        The largest `|X - X'|` of an entry, the largest `||X - X'|| / ||X - X_0||` of a parameter, and notes on roles
        that differ. A run that was refused, or that holds NaN, is infinitely far from any other.
    """
    refusals = [f"refused: {side.refusal}" for side in (here, there) if side.refusal]
    if refusals:
        return Difference(math.inf, math.inf, tuple(refusals), "before the first step")
    found = Difference(notes=tuple(role_notes(here, there)))
    for step, weights in here.weights.items():
        others = there.weights[step]
        for name, weight, other, start in zip(here.names, weights, others, here.start, strict=True):
            apart = (weight - other).double()
            moved = (weight - start).double()
            largest = finite(apart.abs().max())
            if largest:
                share = finite(apart.norm() / moved.norm())
                place = f"{name} after step {step}"
                found = found.worst(Difference(largest, share, where=place))
    return found


def finite(number: Tensor) -> float:
    """Return a number, infinity in place of NaN, which would hide in a maximum."""
    return number.nan_to_num(nan=math.inf, posinf=math.inf).item()


def role_notes(here: Trajectory, there: Trajectory) -> Iterator[str]:
    """Yield a note for every parameter whose role is another one."""
    for name, role in here.roles.items():
        other = there.roles.get(name)
        if role != other:
            yield f"role of {name}: {role} here, {other} there"


def by_case(here: Trajectories, there: Trajectories) -> dict[Key, Difference]:
    """Return the largest difference of every case and precision, over all models."""
    worst: dict[Key, Difference] = {}
    for key in sorted(here.keys() & there.keys()):
        case, _, precision = key.split(" | ")
        known = worst.get((case, precision), Difference())
        worst[case, precision] = known.worst(compare(here[key], there[key]))
    return worst


def by_method(cases: dict[Key, Difference]) -> dict[Key, Difference]:
    """Return the largest difference of every method and precision, over all its cases."""
    worst: dict[Key, Difference] = {}
    for (case, precision), found in cases.items():
        method = case.split()[0]
        known = worst.get((method, precision), Difference())
        worst[method, precision] = known.worst(found)
    return worst


# ---------------------------------------------------------------------- the report


def line(name: str, precision: str, found: Difference) -> str:
    """Return one line: the largest difference, also as a share of the distance moved, and where it begins."""
    verdict = "equal"
    if found.weights:
        verdict = f"near: {found.where}"
    if found.is_far(precision):
        verdict = f"FAR: {found.where}"
    return f"{name[:64]:64} {precision} {found.weights:9.1e} {found.share:9.1e}  {verdict}"


def report(here: Trajectories, there: Trajectories) -> bool:
    """Print the largest difference of every method, then the cases that differ.

    Args:
        here: Trajectories of this checkout.
        there: Those of the other one.

    Returns:
        Whether all differences are within their bounds, and every case that runs there runs here.
    """
    cases = by_case(here, there)
    print(f"{'method':64} {'':4} {'largest':>9} {'of moved':>9}")
    for (method, precision), found in sorted(by_method(cases).items()):
        print(line(method, precision, found))
    details = []
    notes: set[str] = set()
    far = 0
    for (case, precision), found in cases.items():
        notes.update(found.notes)
        far += found.is_far(precision)
        if found.weights:
            details.append(line(case, precision, found))
    print(f"\n{len(details)} of {len(cases)} cases differ, {far} beyond {BOUND:g} or {LOOSE:g}")
    lost = [f"only there: {key}" for key in sorted(there.keys() - here.keys())]
    new = [f"only here: {key}" for key in sorted(here.keys() - there.keys())]
    for text in (*details, *sorted(notes), *lost, *new):
        print(text)
    return not far and not lost


def main() -> None:
    """Write trajectories, or compare those of two checkouts; exit with 1 if they are far apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="git revision, folder with the package, or a file that --write made")
    parser.add_argument("--write", type=Path, help="file for the trajectories of the package that is imported")
    parser.add_argument("--methods", nargs="+", default=[], help="default: all")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--no-trainer", action="store_true", help="leave out the runs under Lightning's Trainer")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.methods, arguments.steps, not arguments.no_trainer)
        return
    if not arguments.against:
        parser.error("expected --write or --against")
    other = Path(arguments.against)
    there = read(other)[1] if other.is_file() else collect(arguments.against, arguments)
    here = collect(str(ROOT), arguments)
    sys.exit(not report(here, there))


if __name__ == "__main__":
    main()
