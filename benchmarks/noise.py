"""How well does the optimizer tell rounding noise from gradients?

For many architectures, at the first step and after four steps of AdamW, the gradients of a precision are given to the
optimizer. What it leaves where it is, it takes for noise. The same gradients in fp64 say what is noise.

    zero     the fp64 gradient is below 1e-10 of that of its weight's row (without a weight: of its module's largest)
    missed   zero, and moved: a full step along rounding
    part     the same for zero entries of a vector that has real ones too, the key's third of a `qkv` bias; where they
             are missed, the RMS norm still moves them by no more than their share of the vector
    silent   real, and not moved
    harm     silent, although the gradient agrees with fp64 to better than its own length

The zero entries of a vector count as one, and so do its real ones. They are silent when most of them are. Entries whose
gradient is exactly zero count nowhere.

`module` is another criterion, for comparison: a vector is noise beside the largest gradient of its module.

fp16 is run on the CPU, under the largest loss scale that leaves all gradients finite, and at the second point only: it
is slow.
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
from benchmarks.journal import Journal, Row
from lightning_gluon import Gluon

RESULTS = Path(__file__).parent / "results" / "noise.jsonl"
TRUE_ZERO = 1e-10
FLOORS = (14, 12, 10, 9, 8, 6, 5, 4)  # 2^-n
ALONE = 2**-6  # of the criterion `module`: a vector without siblings beside the model's largest gradient
VECTORS = ("bias", "elementwise")  # the roles that are stepped as one vector
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Precision:
    """How gradients are computed, and the floor n of 2^-n for what rounding leaves."""

    name: str
    dtype: torch.dtype
    floor: int = 0
    scale: float = 1.0
    slow: bool = False

    def gradients(self, model: nn.Module, architecture: Architecture, batch: Batch) -> Gradients:
        """Return all gradients in fp64, under the largest loss scale that leaves them finite."""
        buffers = [buffer.clone() for buffer in model.buffers()]
        scale = self.scale
        while True:
            found = self._gradients(model, architecture, batch, scale)
            for buffer, kept in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(kept)
            finite = all(bool(gradient.isfinite().all()) for gradient in found.values())
            if finite or scale <= 1:
                return found
            scale /= 4

    def _gradients(self, model: nn.Module, architecture: Architecture, batch: Batch, scale: float) -> Gradients:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype.itemsize < 4):
            loss = architecture.loss(model, batch)
        (scale * loss).backward()
        found: Gradients = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.double() / scale
        return found


EXACT = Precision("64-true", torch.float64)
PRECISIONS = (
    Precision("32-true", torch.float32, 9),
    Precision("bf16-mixed", torch.bfloat16, 6),
    Precision("16-mixed", torch.float16, 9, scale=2.0**16, slow=True),
)


@dataclass(frozen=True)
class Vector:
    """The zero or the real entries of one parameter."""

    name: str
    zero: bool
    part: bool  # the parameter has entries of both kinds
    agrees: bool
    floors: tuple[int, ...]  # of the layer's own weight, at which it is silent
    by_module: bool


def rms(tensor: Tensor) -> float:
    """Return the root mean square."""
    return float(tensor.norm()) / math.sqrt(tensor.numel())


def largest_of_modules(gradients: Gradients) -> dict[str, float]:
    """Return the largest RMS among each parameter's siblings, a share of the model's where it has none."""
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


def weight_of(name: str, gradients: Gradients) -> Tensor | None:
    """Return the gradient of the weight whose sums a bias shares."""
    path, dot, last = name.rpartition(".")
    if "bias" not in last:
        return None
    for weight in ("weight", "weight_v", "parametrizations.weight.original1"):
        found = gradients.get(path + dot + last.replace("bias", weight))
        if found is not None:
            return found
    return None


def scale_of(name: str, exact: Gradients, largest: dict[str, float]) -> Tensor:
    """Return what the entries of a vector's fp64 gradient are compared with."""
    size = exact[name].numel()
    weight = weight_of(name, exact)
    if weight is None:
        return torch.full((size,), largest[name], dtype=torch.float64)
    if weight.shape[0] != size and weight.ndim > 1 and weight.shape[1] == size:
        weight = weight.transpose(0, 1)  # stored (in, out)
    if weight.shape[0] != size:
        return torch.full((size,), rms(weight), dtype=torch.float64)
    return weight.reshape(size, -1).square().mean(1).sqrt()


def zeros_of(name: str, exact: Gradients, largest: dict[str, float]) -> Tensor:
    """Return which entries of a vector have a true gradient of zero."""
    gradient = exact[name].flatten()
    if weight_of(name, exact) is None:
        return torch.full(gradient.shape, rms(gradient) < TRUE_ZERO * largest[name])
    return gradient.abs() < TRUE_ZERO * scale_of(name, exact, largest)


def moved_by(optimizer: Gluon, gradients: Gradients, floor: int) -> dict[str, Tensor]:
    """Return which entries a step moves, and take it back."""
    moved: dict[str, Tensor] = {}
    layers = [layer for layer in optimizer.layers() if layer.name in gradients]
    before = [layer.parameter.detach().clone() for layer in layers]
    for layer in layers:
        layer.parameter.grad = gradients[layer.name].to(layer.parameter.dtype)
    for group in optimizer.param_groups:
        group["noise_floor"] = 2.0**-floor
    optimizer.step()
    for layer, start in zip(layers, before, strict=True):
        if layer.role in VECTORS:
            moved[layer.name] = (layer.parameter.detach() != start).flatten()
        layer.parameter.detach().copy_(start)
    return moved


def vectors(optimizer: Gluon, exact: Gradients, rounded: Gradients, floor: int) -> Iterator[Vector]:
    """Return every vector with what both criteria make of it; `floor` is that of `module`."""
    moved = {floor: moved_by(optimizer, rounded, floor) for floor in FLOORS}
    largest, exact_largest = largest_of_modules(rounded), largest_of_modules(exact)
    for name in moved[FLOORS[0]]:
        by_module = rms(rounded[name]) < 2.0**-floor * largest[name]
        zero = zeros_of(name, exact, exact_largest)
        true, found = exact[name].flatten(), rounded[name].flatten()
        for mask in (zero, ~zero):
            own = mask & (found != 0)
            if not own.any():
                continue
            error = (found - true)[own]
            silent = tuple(n for n in FLOORS if moved[n][name][own].float().mean() < 0.5)
            part = bool(zero.any()) and not zero.all()
            yield Vector(name, mask is zero, part, bool(error.norm() < true[own].norm()), silent, by_module)


class Double(TorchFunctionMode):
    """Models that cast to fp32 themselves (a softmax, a norm) stay in fp64."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace every mention of fp32."""
        wide = tuple(torch.float64 if value is torch.float32 else value for value in args)
        named = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        if function is Tensor.float:
            function = Tensor.double
        return function(*wide, **named)


def in_double(batch: Batch) -> Batch:
    """Return a batch for a model in fp64."""
    wide = dict(batch)
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            wide[key] = value.double()
    return wide


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


def measure(architecture: Architecture) -> dict[Precision, list[Vector]]:
    """Return all vectors, by precision."""
    found: dict[Precision, list[Vector]] = {precision: [] for precision in PRECISIONS}
    for steps, model, batch in states(architecture):
        with Double():
            exact = EXACT.gradients(copy.deepcopy(model).double(), architecture, in_double(batch))
        # By signs, where a gradient of any size makes the same step.
        optimizer = Gluon(model, lr=0.01, method="signsgd")
        for precision in PRECISIONS:
            if steps or not precision.slow:
                rounded = precision.gradients(model, architecture, batch)
                found[precision] += vectors(optimizer, exact, rounded, precision.floor)
    return found


def version_of(library: str) -> str:
    """Return a library with its version."""
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return library


def record(architecture: Architecture, precision: Precision, found: list[Vector]) -> Row:
    """Return one row of the results; counts under `weight` are one per floor."""
    zeros = [vector for vector in found if vector.zero and not vector.part]
    parts = [vector for vector in found if vector.zero and vector.part]
    real = [vector for vector in found if not vector.zero]
    agreeing = [vector for vector in real if vector.agrees]
    return {
        "architecture": architecture.name,
        "library": version_of(architecture.library),
        "precision": precision.name,
        "zeros": len(zeros),
        "parts": len(parts),
        "real": len(real),
        "agreeing": len(agreeing),
        "weight": {
            "floors": FLOORS,
            "missed": [sum(floor not in vector.floors for vector in zeros) for floor in FLOORS],
            "missed_parts": [sum(floor not in vector.floors for vector in parts) for floor in FLOORS],
            "silent": [sum(floor in vector.floors for vector in real) for floor in FLOORS],
            "harm": [sum(floor in vector.floors for vector in agreeing) for floor in FLOORS],
        },
        "module": {
            "floors": [precision.floor],
            "missed": [sum(not vector.by_module for vector in zeros)],
            "missed_parts": [sum(not vector.by_module for vector in parts)],
            "silent": [sum(vector.by_module for vector in real)],
            "harm": [sum(vector.by_module for vector in agreeing)],
        },
        "missed": names(vector for vector in zeros if precision.floor not in vector.floors),
        "harmed": names(vector for vector in agreeing if precision.floor in vector.floors),
        "harmed_by_module": names(vector for vector in agreeing if vector.by_module),
    }


def names(found: Iterator[Vector]) -> list[str]:
    """Return the first names."""
    return sorted({vector.name for vector in found})[:4]


def table(rows: list[Row], criterion: str) -> str:
    """Return the totals of a criterion as Markdown, one line per precision and floor; the floor in use is bold."""
    lines = [
        "| precision | floor | true zeros | missed | parts | missed | real gradients | silent | harm |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for precision in PRECISIONS:
        own = [row for row in rows if row["precision"] == precision.name]
        zeros, parts, real = (sum(row[key] for row in own) for key in ("zeros", "parts", "real"))
        for place, floor in enumerate(own[0][criterion]["floors"]):
            errors = Counter[str]()
            for row in own:
                errors.update({key: counts[place] for key, counts in row[criterion].items()})
            label = f"**2^-{floor}**" if floor == precision.floor else f"2^-{floor}"
            missed = f"{zeros} | {errors['missed']}{share(errors['missed'], zeros)}"
            inside = f"{parts} | {errors['missed_parts']}"
            silent = f"{real} | {errors['silent']}{share(errors['silent'], real)} | {errors['harm']}"
            lines.append(f"| {precision.name} | {label} | {missed} | {inside} | {silent} |")
    return "\n".join(lines)


def share(count: int, of: int) -> str:
    """Return the share of a count, where there is one."""
    return f" ({count / of:.2%})" if count else ""


def totals(journal: Journal) -> list[Row]:
    """Return the last row of every architecture and precision."""
    return journal.latest("run", "architecture", "precision")


def main() -> None:
    """Measure what the results lack, or all that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of architectures to measure (again)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(options.output)
    known = {row["architecture"] for row in journal.of("run")}
    for architecture in ARCHITECTURES:
        chosen = architecture.name in options.only if options.only else architecture.name not in known
        if not chosen:
            continue
        for precision, found in measure(architecture).items():
            journal.append("run", **record(architecture, precision, found))
        print(architecture.name, flush=True)
    for criterion in ("weight", "module"):
        print(f"\n{criterion}\n\n{table(totals(journal), criterion)}")


if __name__ == "__main__":
    main()
