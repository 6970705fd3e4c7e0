"""How evenly is an optimizer step shared between ranks, and what does each send and hold? Arithmetic, without ranks.

Every hidden matrix has one owner, which takes its whole LMO. Owners and rounds are the package's own
(`lightning_gluon.ranks.owners`). From them follow, per rank of N under FSDP2:

    work     largest sum of LMO operations over the rounds, in which ranks wait for each other, over the mean
    sent     pieces to the owners and back, 16 bits an entry each way
    held     state (fp32 momentum, 4 bytes an entry) of 1/N, and the whole matrices of two rounds with their updates

Beyond 32 ranks whole matrices are too coarse. A simulation of what could follow: `k` ranks take one LMO together.
Of a matrix with the shorter side s each holds s/k rows of the Gram matrix and 1/k of the longer side.

    touch    X X^T or Q X of the whole matrix         1/k of the products, one all-reduce of s x s
    product  of two s x s matrices                    1/k of the products, one all-gather of s x s

Ranks then form N/k teams, and every team owns whole matrices. This is not implemented. The milliseconds are those of
a rank that computes at 400 TFLOP/s and sends at 400 GB/s, about what an H200 does over NVLink; they are not measured.

    python -m benchmarks.ranks                  # prints the tables
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.journal import Journal
from lightning_gluon.norms import Spectral
from lightning_gluon.ranks.owners import assign, cut_rounds

RESULTS = Path("benchmarks/results/ranks.jsonl")
LIMIT = 2**25  # entries of whole matrices that an owner takes up in one round on a GPU
FLAT = 1.5  # longer matrices are iterated on their Gram matrix
LONG_TOUCHES, LONG_PRODUCTS = 6, 15  # of six steps; what `Spectral.cost` counts
FLAT_TOUCHES, FLAT_PRODUCTS = 12, 6
SPEED = 4e14  # operations per second
WIRE = 4e11  # bytes per second
EVEN = 1.05  # largest over mean work at which no larger teams are tried
SIZES = (8, 16, 32, 64, 256, 1024)


@dataclass(frozen=True)
class Item:
    """A parameter that travels whole: one matrix, or several that are stored as one.

    Args:
        shapes: `(rows, columns)` of its matrices.
    """

    shapes: tuple[tuple[int, int], ...]

    @property
    def entries(self) -> int:
        """Number of entries."""
        return sum(rows * columns for rows, columns in self.shapes)

    @property
    def cost(self) -> float:
        """Operations of its LMO."""
        norm = Spectral()
        return sum(norm.cost(rows, columns) for rows, columns in self.shapes)

    def team_bytes(self, ranks: int) -> float:
        """Return the bytes that each of some ranks sends when they take this LMO together, in fp32."""
        found = 0.0
        for rows, columns in self.shapes:
            side = min(rows, columns)
            flat = max(rows, columns) <= FLAT * side
            touches = FLAT_TOUCHES if flat else LONG_TOUCHES
            products = FLAT_PRODUCTS if flat else LONG_PRODUCTS
            gram = 4 * side**2 * (ranks - 1) / ranks
            found += (2 * (touches / 2) + products) * gram  # every second touch is a sum, of two parts each
        return found


@dataclass(frozen=True)
class Model:
    """Hidden matrices of a network, and what else it holds.

    Args:
        items: The hidden parameters.
        parameters: Entries of all of its parameters.
    """

    items: tuple[Item, ...]
    parameters: int


def decoder(hidden: int, inner: int, layers: int, key_width: int, vocabulary: int, *, tied: bool) -> Model:
    """Return a Qwen2 by its widths."""
    shapes = [(hidden, hidden), (key_width, hidden), (key_width, hidden), (hidden, hidden)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    items = [Item((shape,)) for shape in shapes] * layers
    vectors = layers * (2 * hidden + hidden + 2 * key_width) + hidden
    tables = vocabulary * hidden * (1 if tied else 2)
    return Model(tuple(items), sum(item.entries for item in items) + vectors + tables)


def transformer(width: int, layers: int, others: int) -> Model:
    """Return a ViT by its width; query, key and value are one parameter of three matrices."""
    items = [Item(((width, width),) * 3), Item(((width, width),))]
    items += [Item(((4 * width, width),)), Item(((width, 4 * width),))]
    return Model(tuple(items * layers), 12 * layers * width**2 + others)


MODELS = {
    "ViT-S": transformer(384, 12, others=812_000),
    "Qwen2.5-0.5B": decoder(896, 4864, 24, 128, 151936, tied=True),
    "Qwen2.5-7B": decoder(3584, 18944, 28, 512, 152064, tied=False),
    "Qwen2.5-72B": decoder(8192, 29568, 80, 1024, 152064, tied=False),
}


@dataclass(frozen=True)
class Schedule:
    """Owners and rounds of a model.

    Args:
        model: The model.
        ranks: Number of ranks N.
        team: Ranks k that take one LMO together.
    """

    model: Model
    ranks: int
    team: int = 1

    @property
    def slots(self) -> int:
        """Number of teams."""
        return self.ranks // self.team

    def rounds(self) -> Iterator[list[list[Item]]]:
        """Yield every round: the items of each team."""
        items = self.model.items
        costs = [item.cost for item in items]
        owners = assign(costs, self.slots)
        for members in cut_rounds(owners, costs, [item.entries for item in items], LIMIT * self.team):
            batches: list[list[Item]] = [[] for _ in range(self.slots)]
            for index in members:
                batches[owners[index]].append(items[index])
            yield batches

    def measure(self) -> Measure:
        """Return work, bytes sent and bytes held, of the rank that has most of each."""
        rounds = list(self.rounds())
        total = work(self.model.items)
        longest = sum(max(work(batch) for batch in batches) for batches in rounds)
        owned = [sum(entries(batches[slot]) for batches in rounds) for slot in range(self.slots)]
        together = [sum(team_bytes(batches[slot], self.team) for batches in rounds) for slot in range(self.slots)]
        largest = max(entries(batch) for batches in rounds for batch in batches) / self.team
        others = (self.ranks - 1) / self.ranks
        return Measure(
            ranks=self.ranks,
            team=self.team,
            work=longest * self.slots / total,
            rounds=len(rounds),
            seconds=longest / self.team / SPEED,
            sent=2 * others * (sum(owned) / self.ranks + max(owned) / self.team),
            together=max(together),
            state=4 * self.model.parameters / self.ranks,
            held=min(2, len(rounds)) * (4 + 2) * largest,
        )


@dataclass(frozen=True)
class Measure:
    """Numbers of a schedule; bytes are those of the rank that has most.

    Args:
        ranks: Number of ranks N.
        team: Ranks k that take one LMO together.
        work: Largest over mean work, with rounds in lockstep.
        rounds: Number of rounds.
        seconds: Time of the LMOs at `SPEED`.
        sent: Bytes sent to owners and back.
        together: Bytes sent inside a team.
        state: Bytes of the state.
        held: Bytes of whole matrices and their updates.
    """

    ranks: int
    team: int
    work: float
    rounds: int
    seconds: float
    sent: float
    together: float
    state: float
    held: float

    def cells(self) -> list[str]:
        """Return a row of the table."""
        team = [str(self.team), f"{size(self.together)}, {duration(self.together / WIRE)}"]
        if self.team == 1:
            team = ["1", "-"]
        numbers = [f"{self.work:.3f}", str(self.rounds), duration(self.seconds)]
        return [str(self.ranks), team[0], *numbers, size(self.sent), team[1], size(self.state), size(self.held)]


def work(batch: Sequence[Item]) -> float:
    """Return the operations of some LMOs."""
    return sum(item.cost for item in batch)


def entries(batch: Sequence[Item]) -> int:
    """Return the entries of some parameters."""
    return sum(item.entries for item in batch)


def team_bytes(batch: Sequence[Item], team: int) -> float:
    """Return what a rank of a team sends for some LMOs."""
    return sum(item.team_bytes(team) for item in batch)


def smallest_team(model: Model, ranks: int) -> int:
    """Return the fewest ranks per LMO at which the work is even, as a power of two."""
    team = 1
    while team < ranks and Schedule(model, ranks, team).measure().work > EVEN:
        team *= 2
    return team


def measures(model: Model, sizes: Sequence[int] = SIZES) -> Iterator[Measure]:
    """Yield what a model needs on every number of ranks: with whole matrices, and in teams if that is uneven."""
    for ranks in sizes:
        for team in sorted({1, smallest_team(model, ranks)}):
            yield Schedule(model, ranks, team).measure()


def size(value: float) -> str:
    """Return bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Return a time for people."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


HEADER = (
    "ranks", "ranks per LMO", "work, max/mean", "rounds", "LMO", "sent", "sent in a team", "state", "whole matrices",
)  # fmt: skip


def table(found: Iterable[Measure]) -> str:
    """Return rows as a table of Markdown."""
    rows = [list(HEADER), ["---"] * len(HEADER), *(one.cells() for one in found)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Print the tables, and record their rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ranks", nargs="+", type=int, default=SIZES)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    journal = Journal(given.output)
    for name in given.models:
        found = list(measures(MODELS[name], given.ranks))
        for one in found:
            journal.append("run", model=name, **asdict(one))
        print(f"{name}, {work(MODELS[name].items) / 1e12:,.3f} TFLOP of LMOs per step:\n\n{table(found)}")


if __name__ == "__main__":
    main()
