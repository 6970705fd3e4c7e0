"""Time of a whole optimizer step against its neighbours, on real models' layer shapes, with the LMO gap beside it.

Every row steps its own copy of the same weights with the same gradients; rows take turns, round by round, and the ratio
is taken round by round too, so a machine whose speed drifts does not favour anyone; LionMuon's time is the mean of its
period. `gap` is `1 - <G, D> / ||G||_*` of the direction that the row really stepped along, after scaling it to
spectral norm 1: what its LMO is worth. Torch's Muon multiplies in bf16, which is fast or slow by the CPU. So it stands
here twice: as it is, and with its products in the dtype that ours have. `floor` is the time of the products of a
default step at the measured matrix rate and of 24 bytes per parameter at the measured bandwidth; `profile` says what
the operators of one step of `gluon` take.

    python -m benchmarks.step --models vit_ti vit_s qwen2_5/12 --rounds 7
    python -m benchmarks.step --dtype float32 --threads 1 --clock processor       # on a busy machine
    python -m benchmarks.step --device cuda --models vit_s vit_b mamba_130m qwen2_5 --rounds 50
    python -m benchmarks.step --device cuda --models vit_s --rows gluon "gluon, compiled" "gluon, captured" --rounds 50
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lightning_gluon
from benchmarks.journal import Journal
from benchmarks.yardsticks import torch_muon, torch_muon_in
from lightning_gluon.norms import Spectral

BASELINE = "torch Muon + AdamW"
SAME_DTYPE = "torch Muon + AdamW, our dtype"
HIDDEN = "hidden"


# ---------------------------------------------------------------- models: names, shapes and roles


def build(model: str) -> tuple[nn.Module, int]:
    """Return a model on the meta device, and how many times smaller than the real one it is (`name/12`)."""
    name, _, divisor = model.partition("/")
    share = int(divisor or 1)
    with torch.device("meta"):
        if name.startswith("vit"):
            import timm

            size = {"vit_ti": "tiny", "vit_s": "small", "vit_b": "base"}[name]
            return timm.create_model(f"vit_{size}_patch16_224", depth=12 // share), share
        from transformers import MambaConfig, MambaForCausalLM, Qwen2Config, Qwen2ForCausalLM

        if name == "mamba_130m":
            config = MambaConfig(vocab_size=50280 // share, hidden_size=768, num_hidden_layers=24 // share)
            return MambaForCausalLM(config), share
        if name == "qwen2_5":
            config = Qwen2Config(
                hidden_size=896,
                intermediate_size=4864,
                num_hidden_layers=24 // share,
                num_attention_heads=14,
                num_key_value_heads=2,
                vocab_size=151936 // share,
                tie_word_embeddings=True,
            )
            return Qwen2ForCausalLM(config), share
    raise ValueError(f"Unknown model {model!r}: vit_ti, vit_s, vit_b, mamba_130m or qwen2_5, optionally /share.")


class Problem:
    """Weights and gradients of a model's shapes, routed once.

    Args:
        model: Its name, as `build` takes it.
        device: Where they live.
        dtype: The dtype of our products, such as `float32`; default: what the hardware does fast.
    """

    def __init__(self, model: str, device: str, dtype: str | None = None) -> None:
        self.module, self.share = build(model)
        self.device = device
        self.dtype = dtype
        self.routes = {route.name: route for route, _ in lightning_gluon.partition(self.module)}
        torch.manual_seed(0)
        shapes = {name: route.shape for name, route in self.routes.items()}
        self.weights = {name: 0.02 * torch.randn(shape, device=device) for name, shape in shapes.items()}
        self.gradients = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
        self.probe = self._whole_hidden_matrix()

    def _whole_hidden_matrix(self) -> str:
        """Return the name of the first hidden parameter that holds one matrix."""
        for name, route in self.routes.items():
            if route.role == HIDDEN and len(route.views) == 1:
                return name
        raise ValueError("Expected `model` to have a hidden weight that is one matrix, but it has none.")

    def copy(self) -> nn.Module:
        """Return the model with fresh weights and the common gradients."""
        module = copy.deepcopy(self.module).to_empty(device=self.device)
        if hasattr(module, "tie_weights"):  # `to_empty` gives tied names tensors of their own
            module.tie_weights()
        for name, parameter in module.named_parameters():
            parameter.data.copy_(self.weights[name])
            parameter.grad = self.gradients[name]
        return module

    def matrices(self, module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the hidden matrices that stock Muon can take (2-D, whole), and everything else."""
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            chosen = self.routes[name].role == HIDDEN and parameter.ndim == 2
            (hidden if chosen else rest).append(parameter)
        return hidden, rest


# ---------------------------------------------------------------- rows: name -> step function


class Pair:
    """Two optimizers stepped one after the other."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        """Step both."""
        for optimizer in self.optimizers:
            optimizer.step()


Row = Callable[[Problem, nn.Module], Any]


def _ours(method: str, *, spectral: bool = True, **options: Any) -> Row:
    def build_row(problem: Problem, module: nn.Module) -> Any:
        given = {"orthogonalizer_dtype": problem.dtype} if problem.dtype and spectral else {}
        return lightning_gluon.Gluon(module, lr=1e-3, method=method, **given, **options)

    return build_row


def _torch_muon(problem: Problem, module: nn.Module) -> Any:
    hidden, rest = problem.matrices(module)
    return Pair(torch.optim.Muon(hidden, lr=1e-3, weight_decay=0.0), torch.optim.AdamW(rest, lr=1e-3, fused=True))


class SameDtype:
    """Torch's Muon beside AdamW, its products in the dtype that ours have."""

    def __init__(self, pair: Pair, dtype: torch.dtype) -> None:
        self.pair = pair
        self.dtype = dtype

    def step(self) -> None:
        """Step both."""
        with torch_muon_in(self.dtype):
            self.pair.step()


def _torch_muon_same_dtype(problem: Problem, module: nn.Module) -> Any:
    weight = problem.weights[problem.probe]
    chosen = Spectral(dtype=problem.dtype).on(weight, weight.shape).dtype
    return SameDtype(_torch_muon(problem, module), getattr(torch, chosen) if isinstance(chosen, str) else chosen)


def _pytorch_optimizer_muon(problem: Problem, module: nn.Module) -> Any:
    import pytorch_optimizer

    hidden, rest = problem.matrices(module)
    groups = [{"params": hidden, "use_muon": True}, {"params": rest, "use_muon": False}]
    return pytorch_optimizer.Muon(groups, lr=1e-3, weight_decay=0.0)


def _pytorch_optimizer_scion(problem: Problem, module: nn.Module) -> Any:
    import pytorch_optimizer
    from pytorch_optimizer.optimizer.scion import LMONorm

    hidden, rest = problem.matrices(module)
    groups = [
        {"params": hidden, "norm_type": LMONorm.SPECTRAL},
        {"params": [p for p in rest if p.ndim > 1], "norm_type": LMONorm.SIGN},
        {"params": [p for p in rest if p.ndim <= 1], "norm_type": LMONorm.BIAS},
    ]
    return pytorch_optimizer.SCION(groups, lr=1e-3, weight_decay=0.0)


def _timm_muon(problem: Problem, module: nn.Module) -> Any:
    from timm.optim import Muon

    hidden, rest = problem.matrices(module)
    return Muon([{"params": hidden}, {"params": rest, "use_fallback": True}], lr=1e-3, weight_decay=0.0)


class Bare:
    """The LMO of all hidden matrices, without momentum and weights."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.step = call


def _lmo_ours(problem: Problem, module: nn.Module) -> Any:
    shapes: dict[tuple[int, int], list[Any]] = {}
    for name, route in problem.routes.items():
        for view in route.views if route.role == HIDDEN else ():
            shapes.setdefault(view.matrix[1:], []).append((view, problem.gradients[name]))

    def call() -> None:
        for members in shapes.values():
            lightning_gluon.orthogonalize(torch.cat([view.gather(gradient) for view, gradient in members]))

    return Bare(call)


def _lmo_torch(problem: Problem, module: nn.Module) -> Any:
    gradients = [parameter.grad for parameter in problem.matrices(module)[0]]
    return Bare(lambda: [torch_muon(gradient) for gradient in gradients])


def _fused_adamw(problem: Problem, module: nn.Module) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)


ROWS: dict[str, Row] = {
    BASELINE: _torch_muon,
    SAME_DTYPE: _torch_muon_same_dtype,
    "gluon": _ours("gluon"),
    "gluon (no check)": _ours("gluon", on_nonfinite="ignore"),
    "gluon, compiled": _ours("gluon", on_nonfinite="ignore", compile=True),
    "gluon, captured": _ours("gluon", on_nonfinite="ignore", compile="reduce-overhead"),  # a CUDA graph
    "muon": _ours("muon"),
    "muon, jordan": _ours("muon", orthogonalizer="jordan"),
    "scion": _ours("scion"),
    "lionmuon": _ours("lionmuon"),
    "signsgd": _ours("signsgd", spectral=False),
    "pytorch_optimizer Muon": _pytorch_optimizer_muon,
    "pytorch_optimizer SCION": _pytorch_optimizer_scion,
    "timm Muon": _timm_muon,
    "fused AdamW": _fused_adamw,
    "LMO alone": _lmo_ours,
    "LMO alone, torch Muon": _lmo_torch,
}
PERIODS = {"lionmuon": 2}  # steps that are timed as one, where they differ
NO_GAP = ("fused AdamW", "LMO alone", "LMO alone, torch Muon")
DEFAULT_ROWS = [name for name in ROWS if name not in ("gluon, compiled", "gluon, captured")]  # minutes to compile


# ---------------------------------------------------------------- measuring


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def clock(device: str, kind: str = "wall") -> Callable[[Callable[[], Any]], float]:
    """Return a function that times one call in seconds: CUDA events on a GPU, elsewhere the wall or the processor."""
    now = CLOCKS[kind]
    if device != "cuda":

        def on_host(call: Callable[[], Any]) -> float:
            start = now()
            call()
            return now() - start

        return on_host

    def events(call: Callable[[], Any]) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3

    return events


def gap(problem: Problem, row: Row) -> float | None:
    """Return the LMO gap of the first direction a row steps along for one hidden matrix."""
    name = problem.probe
    before = problem.weights[name].double()
    module = problem.copy()
    row(problem, module).step()
    direction = before - module.get_parameter(name).detach().double()
    size = torch.linalg.matrix_norm(direction, 2)
    gradient = problem.gradients[name].double()
    return float(1 - (gradient * direction).sum() / size / torch.linalg.matrix_norm(gradient, "nuc"))


def measure(
    problem: Problem, rows: dict[str, Row], rounds: int, kind: str = "wall"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one result per row, after all have been stepped in turn."""
    timer, steppers, results = clock(problem.device, kind), {}, {}
    for name, row in rows.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results[name] = {"gap": None if name in NO_GAP else gap(problem, row)}
                steppers[name] = row(problem, problem.copy())
                results[name]["first_step_s"] = timer(steppers[name].step)
                steppers[name].step()
        except (ImportError, TypeError, ValueError, RuntimeError) as error:
            results.pop(name, None)
            yield name, {"error": f"{type(error).__name__}: {error}"[:200]}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, stepper in steppers.items():
            times[name].append(timer(_period(name, stepper)) / PERIODS.get(name, 1))
    for name, values in times.items():
        ratios = _ratios(values, times[BASELINE])
        found = {
            **results[name],
            "median_s": statistics.median(values),
            "min_s": min(values),
            "max_s": max(values),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "ratio_of_least": min(values) / min(times[BASELINE]),
        }
        if SAME_DTYPE in times:
            found["ratio_same_dtype"] = statistics.median(_ratios(values, times[SAME_DTYPE]))
            found["ratio_same_dtype_of_least"] = min(values) / min(times[SAME_DTYPE])
        yield name, found


def _ratios(values: list[float], base: list[float]) -> list[float]:
    return [mine / other for mine, other in zip(values, base, strict=True)]


def _period(name: str, stepper: Any) -> Callable[[], None]:
    def call() -> None:
        for _ in range(PERIODS.get(name, 1)):
            stepper.step()

    return call


def rates(device: str) -> dict[str, Any]:
    """Return the matrix rate in TFLOP/s, in the dtype that is fastest here, and the bandwidth of a copy in GB/s."""
    timer, size = clock(device), 8192 if device == "cuda" else 2048
    dtypes = [torch.float32, torch.bfloat16]
    if device == "cuda":  # on a CPU products in fp16 take minutes
        dtypes.append(torch.float16)
    seconds = {}
    for dtype in dtypes:
        x = torch.randn(size, size, device=device).to(dtype)
        seconds[dtype] = min(timer(lambda: x @ x) for _ in range(7))  # noqa: B023
    fastest = min(seconds, key=seconds.__getitem__)
    a = torch.randn(2**28 if device == "cuda" else 2**26, device=device)
    b = torch.empty_like(a)
    copying = min(timer(lambda: b.copy_(a)) for _ in range(7))
    return {
        "tflop_s": 2 * size**3 / seconds[fastest] / 1e12,
        "gb_s": 2 * 4 * a.numel() / copying / 1e9,
        "dtype": str(fastest).removeprefix("torch."),
    }


def floors(problem: Problem, rate: dict[str, Any]) -> dict[str, float]:
    """Return the products of a default step in TFLOP, its traffic at 24 bytes per parameter in GB, and their time."""
    flops, entries = 0.0, 0
    for route in problem.routes.values():
        entries += torch.Size(route.shape).numel()
        if route.role == HIDDEN:
            for out, fan_in in (shape for view in route.views for shape in view.shapes):
                small, large = sorted((out, fan_in))
                aspect = large / small
                flops += 2 * small**3 * (6 * aspect + 15 if aspect > 1.5 else 6 * (2 * aspect + 1))
    tflop, gb = flops / 1e12, 24 * entries / 1e9
    return {
        "tflop": tflop,
        "traffic_gb": gb,
        "parameters": entries,
        "floor_s": tflop / rate["tflop_s"] + gb / rate["gb_s"],
    }


KINDS = {"products": ("mm",), "copies": ("copy", "_to_copy"), "norms": ("norm", "amax", "amin")}


def profile(problem: Problem) -> dict[str, float]:
    """Return the shares of one step of `gluon` by kind of operator, of the device's time where there is one."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    stepper = ROWS["gluon"](problem, problem.copy())
    stepper.step()
    cuda = problem.device == "cuda"
    with record(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        stepper.step()
    shares = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in recorded.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        kind = next((k for k, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
        shares[kind] += spent
    return {kind: round(spent / sum(shares.values()), 4) for kind, spent in shares.items()}


def show(model: str, floor: float, results: dict[str, dict[str, Any]], console: Console) -> None:
    """Print a table of one model's rows."""
    table = Table(title=f"{model}: one optimizer step, ratio to {BASELINE}")
    for column in (
        "row",
        "median ms",
        "min-max ms",
        "ratio",
        "min-max",
        "same dtype",
        "x floor",
        "LMO gap",
        "first ms",
    ):
        table.add_column(column, justify="left" if column == "row" else "right")
    for name, row in results.items():
        if "error" in row:
            table.add_row(name, row["error"], *[""] * 7)
            continue
        ms = {key: f"{1e3 * row[key]:.2f}" for key in ("median_s", "min_s", "max_s", "first_step_s")}
        shown = "" if row["gap"] is None else f"{100 * row['gap']:.2f} %"
        spread = f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}"
        same = f"{row['ratio_same_dtype']:.2f}" if "ratio_same_dtype" in row else ""
        table.add_row(
            name,
            ms["median_s"],
            f"{ms['min_s']}-{ms['max_s']}",
            f"{row['ratio']:.2f}",
            spread,
            same,
            f"{row['median_s'] / floor:.1f}",
            shown,
            ms["first_step_s"],
        )
    console.print(table)


def main() -> None:
    """Measure, append rows, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_ti", "vit_s", "qwen2_5/12"])
    parser.add_argument("--rows", nargs="+", default=DEFAULT_ROWS, choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", help="of our products, such as float32; default: what the hardware does fast")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="on a CPU")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {name: ROWS[name] for name in dict.fromkeys([BASELINE, SAME_DTYPE, *arguments.rows])}
    rate = rates(arguments.device)
    console, journal = Console(width=130), Journal(arguments.output)
    journal.append("rates", **rate)
    for model in arguments.models:
        problem = Problem(model, arguments.device, arguments.dtype)
        floor = floors(problem, rate)
        journal.append("model", model=model, floors=floor, profile=profile(problem))
        results = dict(measure(problem, rows, arguments.rounds, arguments.clock))
        results = {name: results[name] for name in rows if name in results}
        for name, row in results.items():
            journal.append("run", model=model, row=name, dtype=arguments.dtype, clock=arguments.clock, **row)
        show(model, floor["floor_s"], results, console)
    console.print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
