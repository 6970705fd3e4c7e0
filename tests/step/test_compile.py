"""What a compiler and a captured graph need: one graph whatever the schedules do, equal results, no look at a value."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_gluon
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.smoothness.readings import Pair, measure
from tests._toys import needed

compile_ = torch.compile


def model() -> nn.Module:
    torch.manual_seed(0)
    hidden = nn.MultiheadAttention(32, 2)  # a fused projection
    return nn.ModuleDict(
        {"table": nn.Embedding(50, 32), "mix": hidden, "up": nn.Linear(32, 96), "head": nn.Linear(96, 5)}
    )


def give_gradients(*models: nn.Module, seed: int) -> None:
    """Give all models the same gradients, of full rank: rounding decides the directions that a gradient lacks."""
    generator = torch.Generator().manual_seed(seed)
    for parameters in zip(*(m.parameters() for m in models), strict=True):
        gradient = torch.randn(parameters[0].shape, generator=generator)
        for parameter in parameters:
            parameter.grad = gradient.clone()


def compare(method: str, steps: int, **options: Any) -> None:
    """Step eagerly and compiled under changing learning rates and radii, and compare the weights after every step."""
    plain, fast = model(), model()
    fixed = {"method": method, "weight_decay": 0.1, "orthogonalizer_dtype": "float32", **options}
    eager, compiled = (lightning_gluon.Gluon(m, 0.02, **fixed, compile=c) for m, c in ((plain, False), (fast, True)))
    for step in range(steps):
        give_gradients(plain, fast, seed=step)
        for optimizer in (eager, compiled):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * (1 - step / 10)
                if group["role"] == "head":
                    group["radius"] = 25.0 + step
            optimizer.two_point = "loop"  # this one
            if optimizer.needs_reference:
                optimizer.reference_gradients = {p: p.grad + 0.1 for g in optimizer.param_groups for p in g["params"]}
            optimizer.step()
        for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
            assert (a - b).norm() <= 1e-5 * a.norm(), name  # seen: 1e-6


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Compile without a compiler: the same graphs, run by torch; a break in one is an error."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def without(function: Any, **options: Any) -> Any:
        return compile_(function, backend="aot_eager", fullgraph=True, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", without)
    return torch._dynamo.utils.counters["stats"]


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("gluon", {}, 1),
        ("muon", {}, 1),
        ("lionmuon", {"every": 2}, 2),
        ("gluon-mvr1", {"reference": "step"}, 2),
        ("gluon-lowrank", {"rank": 2}, 1),  # its momenta are compressed beside the graph
    ],
)
def test_one_graph_equals_eager(graphs: Counter, method: str, options: dict[str, Any], expected: int) -> None:
    compare(method, 5, **options)
    assert graphs["unique_graphs"] == expected  # two: with and without signs; the first step has no second gradient


def test_what_is_written_stays_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph is captured only where every tensor that is written keeps its address."""
    torch._dynamo.reset()
    marks: list[Counter] = []

    def look(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        static = ["_dynamo_static_input_type" in node.meta.get("tensor_dict", {}) for node in places]

        def run(*arguments: torch.Tensor) -> Any:
            before = [argument._version for argument in arguments]
            result = graph.forward(*arguments)
            written = [argument._version > version for argument, version in zip(arguments, before, strict=True)]
            marks.append(Counter(zip(written, static, strict=True)))
            return result

        return run

    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend=look, fullgraph=True))
    module = model()
    optimizer = lightning_gluon.Gluon(module, compile="reduce-overhead")
    for seed in range(2):
        give_gradients(module, seed=seed)
        optimizer.step()
    parameters = len(list(module.parameters()))
    for seen in marks:
        assert seen[True, False] == 0 and seen[True, True] == 2 * parameters, seen  # weights and momenta
        assert seen[False, False] >= parameters  # gradients move
    assert len(marks) == 2


def test_marks_do_not_trouble_a_checkpoint(tmp_path: Path, graphs: Counter) -> None:
    module, again = model(), model()
    optimizer = lightning_gluon.Gluon(module, compile=True)
    give_gradients(module, again, seed=0)
    optimizer.step()
    torch.save((module.state_dict(), optimizer.state_dict()), tmp_path / "saved.pt")
    weights, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed = lightning_gluon.Gluon(again, compile=True)
    resumed.load_state_dict(state)
    give_gradients(module, again, seed=1)
    optimizer.step()
    resumed.step()
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gluon", "lionmuon"])
def test_inductor_equals_eager(method: str) -> None:
    compare(method, 3)


def take_two_steps(module: nn.Module, optimizer: lightning_gluon.Gluon) -> None:
    """Step on gradients of noise, at both points where the method takes two."""
    optimizer.two_point = "callback"
    for _ in range(2):
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        if optimizer.needs_reference:
            optimizer.reference_gradients = {p: torch.randn_like(p) for p in module.parameters()}
        optimizer.step()


def step_without_values(method: str, on_nonfinite: str, device: str = "cpu", **options: Any) -> lightning_gluon.Gluon:
    """Take two steps on tensors that have no values: reading one, as the host would from a device, is an error.

    Such tensors also claim any device, and complain where two are mixed.
    """
    with FakeTensorMode(), torch.device(device):
        module = model()
        optimizer = lightning_gluon.Gluon(module, method=method, on_nonfinite=on_nonfinite, **options)
        take_two_steps(module, optimizer)
    return optimizer


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("method", lightning_gluon.METHODS)
def test_a_step_never_waits_for_the_device(method: str, device: str, tensor_cores: None) -> None:
    # A sketch's generator needs the device itself.
    options = {"rank": None} if method == "gluon-lowrank" else needed(method)
    optimizer = step_without_values(method, "ignore", device, total_steps=8, **options)
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert {value.device.type for value in kept} <= {device}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gluon-mvr1", {"reference": "step"}),
        ("gluon-mvr1", {"reference": "step8"}),
        ("gluon", {"momentum_dtype": "bfloat16", "weight_decay": 0.1}),
        ("gluon", {"orthogonalizer": "jordan", "orthogonalizer_dtype": "bfloat16"}),
        ("gluon", {"orthogonalizer": "svd"}),
    ],
)
def test_nor_with_options(method: str, options: dict[str, Any], tensor_cores: None) -> None:
    step_without_values(method, "ignore", "cuda", **options)


@pytest.mark.parametrize("devices", [("cuda:0", "cuda:1"), ("cuda", "cpu")])
@pytest.mark.parametrize("method", ["gluon", "limuon", "muon", "signsgd"])
def test_a_model_on_two_devices(method: str, devices: tuple[str, str], tensor_cores: None) -> None:
    with FakeTensorMode():
        module = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8, device=d), nn.LayerNorm(8, device=d)]) for d in devices])
        optimizer = lightning_gluon.Gluon(module, method=method, on_nonfinite="ignore")
        take_two_steps(module, optimizer)


def test_only_the_check_of_gradients_waits() -> None:
    with pytest.raises(DataDependentOutputException):
        step_without_values("gluon", "raise")


class Fetches(TorchDispatchMode):
    """Count what brings a value from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and isinstance(result, torch.Tensor):
            self.count += first.device.type == "cuda" and result.device.type == "cpu"
        return result


def test_readings_wait_once(tensor_cores: None) -> None:
    """All of a model's norms and products come over in one piece, here the first read of a value, which fails."""
    optimizer = step_without_values("gluon", "ignore", "cuda")
    with FakeTensorMode(), torch.device("cuda"):
        pairs = []
        for layer in optimizer.layers():
            other = [torch.randn(layer.parameter.shape) for _ in range(4)]
            layer.group["params"][layer.index] = torch.nn.Parameter(torch.randn(layer.parameter.shape))
            pairs.append(Pair(layer, other[0], other[1], other[2], None, other[3]))
        with Fetches() as fetches, pytest.raises(DataDependentOutputException):
            measure(pairs)
    assert fetches.count <= 1


def test_a_pickle_remembers_and_holds_no_graph() -> None:
    module = model()
    optimizer = lightning_gluon.Gluon(module, compile="max-autotune")
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.compile == copy.deepcopy(optimizer).compile == "max-autotune"
    assert "_advance_all" not in again.__dict__


def test_compile_from_yaml() -> None:
    assert GluonOptimizer("gluon", lr=0.02, compile=True).configure(model()).compile is True
    assert GluonOptimizer("gluon", lr=0.02).configure(model()).compile is False


def test_bad_mode() -> None:
    with pytest.raises(ValueError, match=r"`compile` to be one of True, False, None, default, .* but got 3"):
        lightning_gluon.Gluon(model(), compile=3)
