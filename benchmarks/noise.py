"""How well does the guard tell rounding noise from gradients, over many architectures and precisions?

For every architecture, at its first step and after four steps of AdamW, every vector that is stepped by a scale-free
norm is compared with its gradient in fp64:

    zero     the fp64 gradient is below 1e-10 of its weight's (without a weight: of its module's largest), in RMS
    missed   a true zero that is heard: it takes a full step along rounding noise
    silent   a real gradient that is taken for noise
    harm     silent, although the gradient agrees with fp64 to better than its own length

once by the layer's own weight (`weight`, what `lightning_gluon.step.noise` does) and once by the largest gradient of the
module (`module`, what it did). Each map of a fused weight counts as one vector. 16-mixed runs in fp16 autocast on the
CPU, under the largest loss scale that leaves all gradients finite, and after the four steps alone: it is slow.

    python -m benchmarks.noise [--only NAME ...] [--output benchmarks/results/noise.jsonl]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.architectures import ARCHITECTURES, Architecture, Batch
from lightning_gluon import Gluon
from lightning_gluon.norms.table import NORMS
from lightning_gluon.step.noise import NOISE_FLOOR, NoiseGuard
from lightning_gluon.step.plan import Chunk, build_plan

TRUE_ZERO = 1e-10
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
class Judgement:
    """One vector, or one map's part of it: what it is, and what both criteria make of it."""

    name: str
    zero: bool
    agrees: bool
    share: float | None  # of its own weight's RMS; none where it is not judged
    by_weight: bool  # silent
    by_module: bool


def rms(tensor: Tensor) -> float:
    """Return the root mean square."""
    return float(tensor.norm()) / math.sqrt(tensor.numel())


def largest_of_modules(gradients: Gradients) -> dict[str, float]:
    """Return the largest RMS among each parameter's siblings, the model's where it has none."""
    sizes = {name: rms(gradient) for name, gradient in gradients.items()}
    owners = {name: name.rpartition(".")[0] for name in gradients}
    counts = Counter(owners.values())
    largest: dict[str, float] = defaultdict(float)
    for name, owner in owners.items():
        largest[owner] = max(largest[owner], sizes[name])
    model = max(sizes.values())
    return {name: largest[owner] if counts[owner] > 1 else ALONE * model for name, owner in owners.items()}


def judged(chunks: list[Chunk], exact: Gradients, rounded: Gradients, precision: Precision) -> Iterator[Judgement]:
    """Compare every vector of scale-free norms with its fp64 gradient."""
    guard = NoiseGuard(chunks)
    siblings, true_siblings = largest_of_modules(rounded), largest_of_modules(exact)
    floor = NOISE_FLOOR[precision.dtype]
    paired = {pair.bias.name: pair for pair in guard.pairs}
    for name in guarded(chunks):
        pair = paired.get(name)
        by_module = rms(rounded[name]) < precision.floor_of_module * siblings[name]
        parts: list[tuple[Tensor, Tensor, float, float | None]] = []
        if pair is None:
            parts.append((exact[name], rounded[name], true_siblings[name], None))
        elif not pair.fused:
            weight = pair.weight.name
            parts.append((exact[name], rounded[name], rms(exact[weight]), rms(rounded[weight])))
        else:
            weight = pair.weight.name
            cut, whole = pair.parts_of_bias, pair.parts_of_weight
            true_terms, terms = ([rms(part) for part in whole(some[weight])] for some in (exact, rounded))
            parts += zip(cut(exact[name]), cut(rounded[name]), true_terms, terms, strict=True)
        for true, found, true_term, term in parts:
            if not rms(found):
                continue  # exactly zero: there is nothing to amplify
            share = rms(found) / term if term else None
            agrees = float((found - true).norm()) < float(true.norm())
            zero = rms(true) < TRUE_ZERO * true_term
            yield Judgement(name, zero, agrees, share, share is not None and share < floor, by_module)


def guarded(chunks: list[Chunk]) -> list[str]:
    """Return the names of all parameters whose norm forgets the size of a gradient."""
    return [name for chunk in chunks if NORMS[chunk.group["norm"]].guarded for name in chunk.names]


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
            found[precision] += judged(chunks, exact, rounded, precision)
    return found


def record(architecture: Architecture, precision: Precision, judgements: list[Judgement]) -> dict[str, object]:
    """Return one line of the results."""
    zeros = [one for one in judgements if one.zero]
    real = [one for one in judgements if not one.zero]
    own = [one for one in judgements if one.share is not None]
    return {
        "architecture": architecture.name,
        "library": type(architecture).__name__.lower(),
        "precision": precision.name,
        "floor": NOISE_FLOOR[precision.dtype],
        "torch": torch.__version__,
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


def rounded(share: float | None) -> float | None:
    """Return two digits."""
    return share if share is None else float(f"{share:.1e}")


def main() -> None:
    """Measure, one line per architecture and precision as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of architectures")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/noise.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [some for some in ARCHITECTURES if not options.only or some.name in options.only]
    with options.output.open("w") as output:
        for architecture in chosen:
            for precision, judgements in measure(architecture).items():
                line = record(architecture, precision, judgements)
                output.write(json.dumps(line) + "\n")
                output.flush()
                counts = {key: value for key, value in line.items() if isinstance(value, (int, str))}
                print(*counts.values())


if __name__ == "__main__":
    main()
