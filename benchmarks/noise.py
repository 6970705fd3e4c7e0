"""How well does the guard tell rounding noise from gradients, over many architectures and precisions?

For every architecture, at its first step and after four steps of AdamW, every vector that is stepped by a scale-free
norm is compared with its gradient in fp64:

    zero     the fp64 gradient is below 1e-10 of its weight's (without a weight: of its module's largest), in RMS
    missed   a true zero that is heard: it takes a full step along rounding noise
    silent   a real gradient that is taken for noise
    harm     silent, although the gradient agrees with fp64 to better than its own length

once by the layer's own weight (`weight`, what `lightning_gluon.step.noise` does) and once by the largest gradient of
the module (`module`, for comparison). Each map of a fused weight counts as one vector. 16-mixed runs in fp16 autocast
on the CPU, under the largest loss scale that leaves all gradients finite, and after the four steps alone: it is slow.

    python -m benchmarks.noise [--only NAME ...] [--table] [--output benchmarks/results/noise.jsonl]
"""

from __future__ import annotations

import argparse
import copy
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.architectures import ARCHITECTURES, Architecture, Batch
from benchmarks.journal import Journal
from lightning_gluon import Gluon
from lightning_gluon.norms.table import NORMS
from lightning_gluon.step.noise import NOISE_FLOOR, NoiseGuard, Pair
from lightning_gluon.step.plan import Chunk, build_plan

TRUE_ZERO = 1e-10
RESULTS = Path(__file__).parent / "results" / "noise.jsonl"
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Precision:
    """How gradients are computed, and the floors for what rounding leaves."""

    name: str
    dtype: torch.dtype
    floor_of_module: float  # the former criterion's
    scale: float = 1.0
    slow: bool = False

    def gradients(self, model: nn.Module, architecture: Architecture, batch: Batch) -> Gradients:
        """Return all gradients in fp64, divided by the largest loss scale that leaves them finite."""
        buffers = [buffer.clone() for buffer in model.buffers()]
        scale = self.scale
        while True:
            model.zero_grad(set_to_none=True)
            torch.manual_seed(0)
            with torch.autocast("cpu", self.dtype, enabled=self.dtype.itemsize < 4):
                loss = architecture.loss(model, batch)
            (scale * loss).backward()
            named = [(name, parameter.grad) for name, parameter in model.named_parameters()]
            found = {name: gradient.double() / scale for name, gradient in named if gradient is not None}
            for buffer, kept in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(kept)
            if scale <= 1 or all(bool(gradient.isfinite().all()) for gradient in found.values()):
                return found
            scale /= 4


EXACT = Precision("64-true", torch.float64, 0.0)
PRECISIONS = (
    Precision("32-true", torch.float32, 2**-9),
    Precision("bf16-mixed", torch.bfloat16, 2**-6),
    Precision("16-mixed", torch.float16, 2**-9, scale=2.0**16, slow=True),
)
ALONE = 2**-6  # the former criterion's factor for a vector without siblings, beside the model's largest gradient


@dataclass(frozen=True)
class Vector:
    """One vector, or one map's part of it, in fp64 and as it was rounded, with what it is compared with."""

    name: str
    exact: Tensor
    rounded: Tensor
    exact_terms: float  # RMS of the weight's gradient; of the module's largest where there is no weight
    terms: float | None  # the same as it was rounded, where the guard judges at all
    by_module: bool  # silent by the former criterion

    @property
    def share(self) -> float | None:
        """RMS relative to that of the weight, as the guard sees it."""
        if not self.terms:
            return None
        return rms(self.rounded) / self.terms

    @property
    def zero(self) -> bool:
        """True where there is nothing but rounding."""
        return rms(self.exact) < TRUE_ZERO * self.exact_terms

    @property
    def agrees(self) -> bool:
        """True where there is more signal than rounding."""
        error = self.rounded - self.exact
        return float(error.norm()) < float(self.exact.norm())


@dataclass(frozen=True)
class Judgement:
    """What a vector is, and what both criteria make of it."""

    name: str
    zero: bool
    agrees: bool
    share: float | None
    by_weight: bool  # silent
    by_module: bool


def rms(tensor: Tensor) -> float:
    """Return the root mean square."""
    return float(tensor.norm()) / math.sqrt(tensor.numel())


def largest_of_modules(gradients: Gradients) -> dict[str, float]:
    """Return the largest RMS among each parameter's siblings, the model's where it has none."""
    owners = {name: name.rpartition(".")[0] for name in gradients}
    siblings = Counter(owners.values())
    largest: dict[str, float] = defaultdict(float)
    for name, gradient in gradients.items():
        owner = owners[name]
        largest[owner] = max(largest[owner], rms(gradient))
    alone = ALONE * max(largest.values())
    found: dict[str, float] = {}
    for name, owner in owners.items():
        found[name] = largest[owner] if siblings[owner] > 1 else alone
    return found


def vectors(chunks: list[Chunk], exact: Gradients, rounded: Gradients, floor: float) -> Iterator[Vector]:
    """Return every vector of a scale-free norm; `floor` is the former criterion's."""
    paired = {pair.bias.name: pair for pair in NoiseGuard(chunks).pairs}
    largest, exact_largest = largest_of_modules(rounded), largest_of_modules(exact)
    for name in guarded(chunks):
        by_module = rms(rounded[name]) < floor * largest[name]
        pair = paired.get(name)
        if pair is None:
            yield Vector(name, exact[name], rounded[name], exact_largest[name], None, by_module)
            continue
        for part in range(pair.parts):
            one, other = part_of(pair, exact, part), part_of(pair, rounded, part)
            yield Vector(name, one[0], other[0], rms(one[1]), rms(other[1]), by_module)


def part_of(pair: Pair, gradients: Gradients, part: int) -> tuple[Tensor, Tensor]:
    """Return one part of a bias's gradient, and that of its weight."""
    bias, weight = gradients[pair.bias.name], gradients[pair.weight.name]
    if not pair.fused:
        return bias, weight
    return pair.parts_of_bias(bias)[part], pair.parts_of_weight(weight)[part]


def judged(found: Iterator[Vector], floor: float) -> Iterator[Judgement]:
    """Judge all vectors but those that are exactly zero, where there is nothing to amplify."""
    for vector in found:
        share = vector.share
        if vector.rounded.any():
            silent = share is not None and share < floor
            yield Judgement(vector.name, vector.zero, vector.agrees, share, silent, vector.by_module)


def guarded(chunks: list[Chunk]) -> list[str]:
    """Return the names of all parameters whose norm forgets the size of a gradient."""
    names: list[str] = []
    for chunk in chunks:
        if NORMS[chunk.group["norm"]].guarded:
            names += chunk.names
    return names


def states(architecture: Architecture) -> Iterator[tuple[int, nn.Module, Batch]]:
    """Return the model after no and after four steps of AdamW, each with a batch it has not seen."""
    torch.manual_seed(0)
    model = architecture.build().train()
    unseen = architecture.batch(torch.Generator().manual_seed(99))
    yield 0, model, unseen
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(4):
        optimizer.zero_grad()
        architecture.loss(model, architecture.batch(torch.Generator().manual_seed(step))).backward()
        optimizer.step()
    yield 4, model, unseen


class Double(TorchFunctionMode):
    """Models that cast to fp32 themselves (a softmax, a norm) stay in fp64."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace every mention of fp32."""
        wide = tuple(torch.float64 if value is torch.float32 else value for value in args)
        named = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return (Tensor.double if function is Tensor.float else function)(*wide, **named)


def in_double(batch: Batch) -> Batch:
    """Return a batch for a model in fp64."""
    floating = {key: value for key, value in batch.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return {**batch, **{key: value.double() for key, value in floating.items()}}


def measure(architecture: Architecture) -> dict[Precision, list[Judgement]]:
    """Return all judgements, by precision."""
    found: dict[Precision, list[Judgement]] = {precision: [] for precision in PRECISIONS}
    for steps, model, batch in states(architecture):
        with Double():
            exact = EXACT.gradients(copy.deepcopy(model).double(), architecture, in_double(batch))
        for precision in PRECISIONS:
            if precision.slow and not steps:
                continue
            rounded = precision.gradients(model, architecture, batch)
            chunks = build_plan(Gluon(model, lr=0.02).param_groups)
            seen = vectors(chunks, exact, rounded, precision.floor_of_module)
            found[precision] += judged(seen, NOISE_FLOOR[precision.dtype])
    return found


def record(architecture: Architecture, precision: Precision, judgements: list[Judgement]) -> dict[str, object]:
    """Return one line of the results."""
    zeros = [one for one in judgements if one.zero]
    real = [one for one in judgements if not one.zero]
    own = [one for one in judgements if one.share is not None]
    return {
        "architecture": architecture.name,
        "library": version_of(architecture.library),
        "precision": precision.name,
        "floor": NOISE_FLOOR[precision.dtype],
        "torch": torch.__version__.partition("+")[0],
        "zeros": len(zeros),
        "real": len(real),
        "real_agreeing": sum(one.agrees for one in real),
        "missed_by_weight": sum(not one.by_weight for one in zeros),
        "missed_by_module": sum(not one.by_module for one in zeros),
        "silent_by_weight": sum(one.by_weight for one in real),
        "silent_by_module": sum(one.by_module for one in real),
        "harm_by_weight": sum(one.by_weight and one.agrees for one in real),
        "harm_by_module": sum(one.by_module and one.agrees for one in real),
        "zeros_not_judged": sum(one.share is None for one in zeros),
        "largest_share_of_zeros": rounded(max((one.share for one in own if one.zero), default=None)),
        "smallest_share_of_real": rounded(min((one.share for one in own if not one.zero), default=None)),
        "missed": sorted({one.name for one in zeros if not one.by_weight})[:5],
        "silent": sorted({one.name for one in real if one.by_weight})[:5],
        "silent_before": sorted({one.name for one in real if one.by_module})[:5],
    }


def version_of(library: str) -> str:
    """Return a library with its version."""
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return library


def rounded(share: float | None) -> float | None:
    """Return two digits."""
    return share if share is None else float(f"{share:.1e}")


def table(lines: list[dict[str, Any]]) -> str:
    """Return the totals as Markdown."""
    rows = [
        "| precision | criterion | floor | true zeros | missed | real gradients | silent | of which agree with fp64 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for precision in PRECISIONS:
        own = [line for line in lines if line["precision"] == precision.name]
        floors = {"weight": NOISE_FLOOR[precision.dtype], "module": precision.floor_of_module}
        for criterion, floor in floors.items():
            zeros, real, agreeing = (sum(line[key] for line in own) for key in ("zeros", "real", "real_agreeing"))
            counts = [sum(line[f"{error}_by_{criterion}"] for line in own) for error in ("missed", "silent", "harm")]
            missed, silent, harm = (
                f"{count} ({100 * count / of:.1f} %)" for count, of in zip(counts, (zeros, real, agreeing), strict=True)
            )
            power = f"2^{round(math.log2(floor))}"
            rows.append(
                f"| {precision.name} | {criterion} | {power} | {zeros} | {missed} | {real} | {silent} | {harm} |"
            )
    return "\n".join(rows)


def main() -> None:
    """Measure, one row per architecture and precision as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of architectures")
    parser.add_argument("--table", action="store_true", help="print the totals of results there are")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.table:
        print(table(Journal(options.output).latest("run", "architecture", "precision")))
        return
    torch.set_num_threads(1)
    chosen = [some for some in ARCHITECTURES if not options.only or some.name in options.only]
    journal = Journal(options.output)
    for architecture in chosen:
        for precision, judgements in measure(architecture).items():
            journal.append("run", **record(architecture, precision, judgements))
        print(architecture.name, flush=True)
    print(table(journal.latest("run", "architecture", "precision")))


if __name__ == "__main__":
    main()
