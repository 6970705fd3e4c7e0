"""What one optimizer step asks of a GPU, counted on a machine without one: launches, bytes, products, waits.

Parameters and gradients are fake tensors on a CUDA device: they have a shape, a dtype and no memory. The step runs its
CUDA path on them, and every operator is counted on the way.

    launches     kernels, by the rules of `_foreach_launches` for lists of tensors
    bytes        read and written by everything but matrix products, per parameter; a product's copy of its base counts
    tflop        of the matrix products, with their dtypes
    waits        operators after which the host waits for the device
    linalg       decompositions, one per matrix

Counts are of the third step. They are a model, not a time: what a kernel moves in its caches is not seen.

    python -m benchmarks.counts --models vit_s qwen2_5 --rows gluon muon
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightning_gluon
from benchmarks.journal import Journal
from benchmarks.step import build

DEVICE = "cuda"
HOPPER = (9, 0)
# Of a kernel over lists of tensors: entries per block, blocks per launch, tensors per launch by the number of lists.
BLOCK = 65536
BLOCKS = 320
TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}

FREE = {"detach", "alias", "lift_fresh", "set_", "unbind", "view", "_unsafe_view", "device"}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
READS = {"_local_scalar_dense", "is_nonzero", "item", "equal"}
FILLS = {"zero_", "fill_", "normal_", "uniform_"}
PRODUCTS = {"mm", "bmm"}
PRODUCTS_WITH_BASE = {"addmm", "baddbmm"}
DECOMPOSITIONS = ("linalg_qr", "_linalg_svd", "_linalg_eigh", "linalg_cholesky_ex", "geqrf", "cholesky_inverse")
WAITING = ("_linalg_svd", "_linalg_eigh")  # they read back whether they converged


@dataclass
class Counts:
    """The sums of one step.

    Args:
        launches: Kernels by operator.
        moved: Bytes by operator.
        flop: Floating-point operations of products by dtype.
        waits: Operators after which the host waits.
        linalg: Decomposed matrices by operator.
    """

    launches: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    flop: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    linalg: Counter[str] = field(default_factory=Counter)

    def summary(self, parameters: int) -> dict[str, Any]:
        """Return the sums, bytes per parameter."""
        return {
            "launches": self.launches.total(),
            "bytes_per_parameter": self.moved.total() / parameters,
            "tflop": self.flop.total() / 1e12,
            "dtypes": sorted(self.flop),
            "wide_share": self.flop["float64"] / max(1, self.flop.total()),
            "waits": self.waits.total(),
            "linalg": self.linalg.total(),
        }


@dataclass
class Call:
    """An operator that was called, with its arguments and results."""

    name: str
    mutates: bool
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    result: Any

    @property
    def inputs(self) -> list[Tensor]:
        """Tensors that go in, an `out` included."""
        return _tensors((self.arguments, self.keywords))

    @property
    def outputs(self) -> list[Tensor]:
        """Tensors that come out."""
        return _tensors(self.result)

    @property
    def lists(self) -> list[list[Tensor]]:
        """Arguments that are lists of tensors."""
        found = [argument for argument in self.arguments if isinstance(argument, (list, tuple))]
        return [own for own in found if own and isinstance(own[0], Tensor)]

    @property
    def devices(self) -> set[str]:
        """Kinds of the devices that take part."""
        return {tensor.device.type for tensor in (*self.inputs, *self.outputs)}


class StepCounter(TorchDispatchMode):
    """Count the operators on fake CUDA tensors into `counts`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        keywords = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in READS:
            self.counts.waits[name] += 1
            return _answer(args[0])
        result = func(*args, **keywords)
        idle = func.is_view or name in FREE or name in ALLOCATIONS
        call = Call(name, func._schema.is_mutable, args, keywords, result)
        if not idle and DEVICE in call.devices:
            self._count(call)
        return result

    def _count(self, call: Call) -> None:
        if call.devices != {DEVICE} and call.name in {"_to_copy", "copy_"}:
            self.counts.waits[call.name] += 1
        if call.name.startswith("_foreach"):
            self._count_foreach(call)
        elif call.name.startswith(DECOMPOSITIONS):
            self._count_decomposition(call)
        elif call.name in PRODUCTS | PRODUCTS_WITH_BASE:
            self._count_product(call)
        else:
            self.counts.launches[call.name] += 1
            self.counts.moved[call.name] += _moved(call)

    def _count_foreach(self, call: Call) -> None:
        self.counts.launches[call.name] += _foreach_launches(call)
        read = [tensor for own in call.lists for tensor in own]
        if call.name == "_foreach_copy_":
            written: list[Tensor] = []
        elif call.mutates:
            written = call.lists[0]
        else:
            written = call.outputs
        self.counts.moved[call.name] += _nbytes(read) + _nbytes(written)

    def _count_decomposition(self, call: Call) -> None:
        matrices = call.inputs[0]
        self.counts.linalg[call.name] += math.prod(matrices.shape[:-2])
        self.counts.moved[call.name] += _nbytes(call.inputs) + _nbytes(call.outputs)
        if call.name.startswith(WAITING):
            self.counts.waits[call.name] += 1

    def _count_product(self, call: Call) -> None:
        given = [argument for argument in call.arguments if isinstance(argument, Tensor)]
        left, right = given[-2:]
        result = call.keywords.get("out", call.result)
        kind = str(left.dtype).removeprefix("torch.")
        self.counts.flop[kind] += 2 * left.numel() * right.shape[-1]
        self.counts.launches[call.name] += 1
        has_base = call.name in PRODUCTS_WITH_BASE and call.keywords.get("beta", 1) != 0
        if has_base and not _same_storage(given[0], result):
            self.counts.launches["copy of a base"] += 1
            self.counts.moved["copy of a base"] += 2 * _nbytes([result])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _answer(tensor: Tensor) -> bool | float:
    """Return what a fake tensor holds when the host reads it: all is well."""
    return True if tensor.dtype == torch.bool else 1.0


def _moved(call: Call) -> int:
    """Return the bytes of an elementwise operator or a reduction: it reads its inputs and writes its results."""
    distinct = {id(tensor): tensor for tensor in call.inputs if tensor.device.type == DEVICE}
    read = [tensor for tensor in distinct.values() if 0 not in tensor.stride() or tensor.numel() == 1]
    if not call.mutates:
        return _nbytes(read) + _nbytes(call.outputs)
    if "out" in call.keywords:  # among the inputs: counted once, as what is written
        return _nbytes(read)
    written = call.inputs[0]
    if call.name in FILLS:
        return _nbytes([written])
    if call.name == "copy_":
        return _nbytes(call.inputs[1:2]) + _nbytes([written])
    return _nbytes(read) + _nbytes([written])


def _foreach_launches(call: Call) -> int:
    """Return how many kernels an operator on lists takes: few on the fast route, else one per tensor.

    The fast route wants one dtype in all lists (a copy: in each list), and equal strides of the tensors that meet.
    """
    lists = call.lists
    count = len(lists[0])
    norm = call.name == "_foreach_norm"
    if not _is_fast(call):
        return count + norm
    new_list = not (call.mutates or norm)
    tensors = TENSORS[min(len(lists) + new_list, max(TENSORS))]
    blocks = sum(math.ceil(tensor.numel() / BLOCK) for tensor in lists[0])
    return max(math.ceil(count / tensors), math.ceil(blocks / BLOCKS)) + norm


def _is_fast(call: Call) -> bool:
    lists = call.lists
    kinds = [{tensor.dtype for tensor in own} for own in lists]
    if call.name == "_foreach_copy_":
        uniform = all(len(own) == 1 for own in kinds)
    else:
        uniform = len(set().union(*kinds)) == 1
    scalars = len(lists) == 2 and lists[1][0].ndim == 0  # factors that are tensors of their own
    dense = all(_is_dense(tensor) for own in lists for tensor in own)
    return uniform and dense and not scalars and all(_strides_agree(lists[0], own) for own in lists[1:])


def _is_dense(tensor: Tensor) -> bool:
    return tensor.ndim < 2 or tensor.is_contiguous() or tensor.mT.is_contiguous()


def _strides_agree(some: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(one.stride() == other.stride() for one, other in pairs if one.numel() > 1)


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class OurRow:
    """A method with its options, and whether its attention is read head by head."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    per_head: bool = False


ROWS = {
    "gluon": OurRow("gluon"),
    "gluon, five steps": OurRow("gluon", {"orthogonalizer_steps": 5}),
    "gluon, no check": OurRow("gluon", {"on_nonfinite": "ignore"}),
    "muon": OurRow("muon"),
    "gluon, heads apart": OurRow("gluon", per_head=True),
    "muon, heads apart": OurRow("muon", per_head=True),
    "mimuon": OurRow("mimuon", {"gate": 0.001}),
    "mimuon, gap": OurRow("mimuon", {"gate": 0.001, "gate_form": "gap"}),
    "symmetry-compatible": OurRow("symmetry-compatible"),
    "af-muon": OurRow("af-muon"),
    "muoneq": OurRow("muoneq"),
    "normuon": OurRow("normuon"),
    "aurora": OurRow("aurora"),
    "hyperball": OurRow("hyperball"),
    "gluon, brake": OurRow("gluon", {"retract": "brake"}),
    "ef21-muon": OurRow("ef21-muon"),  # one worker, who sends its largest tenth
    "ef21-muon, rank 4": OurRow("ef21-muon", {"compressor": "rank-r"}),
    "lionmuon": OurRow("lionmuon"),  # the third step is a spectral one
    "gluon-mvr1": OurRow("gluon-mvr1"),
    "limuon r=16": OurRow("limuon", {"rank": 16}),
    "gluon-nesterov": OurRow("gluon-nesterov"),
    "gluon-lookahead": OurRow("gluon-lookahead"),
    "gluon-ema-nesterov": OurRow("gluon-ema-nesterov", {"total_steps": 1000}),
    "gluon-anchor": OurRow("gluon-anchor", {"total_steps": 1000}),
    "gluon-dual": OurRow("gluon-dual", {"total_steps": 1000}),
    "muon-dual": OurRow("muon-dual", {"total_steps": 1000}),
    "gluon-mix": OurRow("gluon-mix", {"total_steps": 1000}),
    "gluon-lowrank r=16": OurRow("gluon-lowrank"),
    "gluon-lowrank r=16, int8": OurRow("gluon-lowrank", {"feedback": "int8"}),
    "gluon-lowrank r=16, int4": OurRow("gluon-lowrank", {"feedback": "int4"}),
}
STEPS = 3


class _HostGenerator(torch.Generator):
    """A generator on the host, whichever device is asked for: one on a GPU needs its driver."""

    def __new__(cls, device: Any = "cpu") -> _HostGenerator:
        return super().__new__(cls)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Fake tensors, also on a GPU that is not there."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", lambda *_: HOPPER))
        stack.enter_context(mock.patch.object(torch, "Generator", _HostGenerator))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def _step(optimizer: Any, params: list[nn.Parameter]) -> None:
    if optimizer.needs_reference:
        optimizer.reference_gradients = {parameter: torch.empty_like(parameter) for parameter in params}
        with optimizer.at_reference():
            pass
    optimizer.step()


def count(model: nn.Module, row: OurRow) -> dict[str, Any]:
    """Count the third step of a row.

    Args:
        model: A model, its parameters on the meta device.
        row: A method with its options.

    Returns:
        The sums of `Counts.summary`, the number of parameters, and the bytes of state.
    """
    with fake_gpu(), StepCounter() as counter:
        model = model.to_empty(device=DEVICE)
        if hasattr(model, "tie_weights"):  # `to_empty` gives tied names tensors of their own
            model.tie_weights()
        params = list(model.parameters())
        for parameter in params:
            parameter.grad = torch.empty_like(parameter)
        routed = lightning_gluon.partition(model, per_head=row.per_head)
        optimizer = lightning_gluon.Gluon(routed, lr=1e-3, method=row.method, **row.options)
        if optimizer.reference_point is not None:
            optimizer.two_point = "loop"  # `_step` hands over the second gradient
        for _ in range(STEPS):
            counter.counts = Counts()
            _step(optimizer, params)
        size = sum(parameter.numel() for parameter in params)
        state = optimizer.memory()["bytes_per_parameter"]
        return {"parameters": size, "state_bytes_per_parameter": state, **counter.counts.summary(size)}


def show(model: str, rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Print a table of one model's rows."""
    table = Table(title=f"{model}: one optimizer step on a GPU, counted")
    for column in ("row", "launches", "B / parameter", "TFLOP", "dtypes", "waits", "decompositions"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for name, row in rows.items():
        moved, tflop = f"{row['bytes_per_parameter']:.1f}", f"{row['tflop']:.3f}"
        dtypes = " ".join(row["dtypes"])
        table.add_row(name, str(row["launches"]), moved, tflop, dtypes, str(row["waits"]), str(row["linalg"]))
    console.print(table)


def main() -> None:
    """Count, append rows, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_s", "qwen2_5", "mamba_130m"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/counts.jsonl"))
    arguments = parser.parse_args()
    console, journal = Console(width=120), Journal(arguments.output)
    for model in arguments.models:
        rows = {}
        for name in arguments.rows:
            rows[name] = count(build(model)[0], ROWS[name])
            journal.append("run", model=model, row=name, **rows[name])
        show(model, rows, console)


if __name__ == "__main__":
    main()
