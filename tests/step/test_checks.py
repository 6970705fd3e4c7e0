"""Refusals come whole: at construction, or before anything moves."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from lightning_gluon import METHODS, Gluon, configure_optimizers
from tests._toys import needed


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))


def backward(net: nn.Module) -> None:
    net.zero_grad()
    net(torch.ones(3, 4)).square().sum().backward()


# ---------------------------------------------------------------- values that change while training

CHANGES = [
    ("lr", math.nan, "gluon", r"`lr` of group 'hidden' to satisfy 0 <= lr < inf, but got nan"),
    ("lr", "0.1", "gluon", r"`lr` of group 'hidden' .* got '0.1'"),
    ("lr", -0.1, "adamw", r"`lr` of group 'hidden' .* got -0.1"),
    ("momentum", 2.0, "gluon", r"`momentum` of group 'hidden' to satisfy 0 <= momentum < 1, but got 2.0"),
    ("weight_decay", "much", "gluon", r"`weight_decay` of group 'hidden' .* got 'much'"),
    ("radius", math.inf, "gluon", r"`radius` of group 'hidden' .* got inf"),
    ("radius", [1.0], "gluon", r"`radius` of group 'hidden' to be one number or 2, but got 1"),
    ("orthogonalizer", "cholesky", "gluon", r"`orthogonalizer` of group 'hidden' to be one of polar_express"),
    ("rank", 0, "limuon", r"`rank` of group 'hidden' to be a whole number >= 1"),
    ("betas", (0.9, 1.5), "adamw", r"`betas` of group 'hidden' .* got 1.5"),
    ("on_nonfinite", "shrug", "gluon", r"`on_nonfinite` of group 'hidden' to be one of raise"),
]


@pytest.mark.parametrize(("key", "value", "method", "message"), CHANGES)
def test_a_value_that_changed_is_refused_before_anything_moves(
    key: str, value: object, method: str, message: str
) -> None:
    net = network()
    optimizer = Gluon(net, lr=0.1, method=method)
    optimizer.step(lambda: backward(net))
    before = [p.detach().clone() for p in net.parameters()]
    state = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    kept = optimizer.param_groups[0][key]
    optimizer.param_groups[0][key] = value
    for _ in range(2):  # it is still wrong at the next step
        with pytest.raises(ValueError, match=message):
            optimizer.step(lambda: backward(net))
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    assert all(torch.equal(optimizer.state[p][k], v) for p, s in state.items() for k, v in s.items())
    assert optimizer.gradient_evaluations == 1
    optimizer.param_groups[0][key] = kept
    optimizer.step(lambda: backward(net))


def test_radii_for_adamw_are_refused_before_the_hidden_matrices_move() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.1, method="muon")
    backward(net)
    optimizer.step()
    before = net[2].weight.detach().clone()
    group = next(group for group in optimizer.param_groups if group["estimator"] == "adamw")
    group["radius"] = [1.0] * len(group["params"])
    with pytest.raises(ValueError, match=r"one number as `radius` .*: AdamW has one learning rate"):
        optimizer.step()
    assert torch.equal(net[2].weight, before)


def test_a_list_of_radii_is_watched_entry_by_entry() -> None:
    net = network()
    optimizer = Gluon([{"params": [net[0].weight, net[2].weight], "role": "hidden", "radius": [1.0, 2.0]}], lr=0.1)
    backward(net)
    optimizer.step()
    optimizer.param_groups[0]["radius"][1] = -1.0
    with pytest.raises(ValueError, match=r"`radius` .* got -1.0"):
        optimizer.step()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float16])
def test_a_decomposition_in_16_bits_is_refused_at_construction(dtype: object) -> None:
    with pytest.raises(ValueError, match=r"'svd' to be float32 or float64, but got .*float16"):
        Gluon(network(), lr=0.1, orthogonalizer="svd", orthogonalizer_dtype=dtype)
    Gluon(network(), lr=0.1, orthogonalizer="svd", orthogonalizer_dtype="float64")


class Pair(Sequence):
    """A sequence that is neither list nor tuple, as configuration libraries have them."""

    def __init__(self, *items: float) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> float:  # type: ignore[override]
        return self.items[index]


def test_whatever_behaves_as_a_sequence_is_taken_and_kept_plain() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.1, method="muon", betas=Pair(0.9, 0.95))
    assert {group["betas"] for group in optimizer.param_groups if "betas" in group} == {(0.9, 0.95)}
    for radius in (Pair(1.0, 2.0), torch.tensor([1.0, 2.0])):
        groups = [{"params": [net[0].weight, net[2].weight], "role": "hidden", "radius": radius}]
        assert Gluon(groups, lr=0.1).param_groups[0]["radius"] == [1.0, 2.0]
    with pytest.raises(ValueError, match="`betas` of group 'head' to be two numbers"):
        Gluon(net, lr=0.1, method="muon", betas="09")


def test_an_unknown_mode_of_compile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`compile` to be one of True, False, None, default, .* got 'fast'"):
        Gluon(network(), lr=0.1, compile="fast")


@pytest.mark.parametrize("method", METHODS)
def test_empty_weights_take_no_step(method: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 0))
    optimizer = Gluon([{"params": [p for p in net.parameters() if p.ndim == 2], "role": "hidden"}], lr=0.1,
                      method=method, weight_decay=0.1, total_steps=8, **needed(method))  # fmt: skip
    for _ in range(2):
        optimizer.step(lambda: net(torch.ones(2, 4)).sum().backward())
    assert [layer.norm(layer.parameter).item() > 0 for layer in optimizer.layers()] == [True, False]
    assert optimizer.layers()[1].dual_norm(net[1].weight).item() == 0.0


# ---------------------------------------------------------------- sharded parameters


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


def shard(net: nn.Module) -> nn.Module:
    return fully_shard(net, mesh=init_device_mesh("cpu", (1,)))


def split_columns(net: nn.Module) -> nn.Module:
    return parallelize_module(net, init_device_mesh("cpu", (1,)), {"2": ColwiseParallel()})


FLAT: dict[str, Callable[[nn.Module], nn.Module]] = {
    "FSDP1": functools.partial(FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True),
    "FSDP1 flat": functools.partial(FullyShardedDataParallel, device_id=torch.device("cpu")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FLAT)
def test_flat_pieces_are_refused_before_the_first_step(one_rank: None, form: str) -> None:
    net = FLAT[form](network())
    refused = r"pieces of FSDP1 or DeepSpeed do not say which they belong to\. Shard with `fully_shard`"
    for method in ("gluon", "adamw", "gluon-mvr1"):
        with pytest.raises(NotImplementedError, match=refused):
            Gluon(net, lr=0.1, method=method)
    with pytest.raises(NotImplementedError, match=refused):
        configure_optimizers(net, lr=0.1, rules={"*.nothing": "hidden"})
    with pytest.raises(NotImplementedError, match=refused):
        Gluon(list(net.named_parameters()), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spread", [shard, split_columns])
@pytest.mark.parametrize("method", ["gluon", "adamw", "gluon-mvr1", "hyperball"])
def test_one_rank_of_a_mesh_steps_like_one_alone(one_rank: None, spread: Callable, method: str) -> None:
    plain = network()
    net = spread(copy.deepcopy(plain))
    for model in (plain, net):
        optimizer = Gluon(model, lr=0.1, method=method)
        for _ in range(3):
            optimizer.step(lambda: backward(model))  # noqa: B023 - called here
    for one, other in zip(plain.parameters(), net.parameters(), strict=True):
        assert torch.equal(one, other.full_tensor() if isinstance(other, DTensor) else other)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(2, 2, 3), nn.Embedding(5, 3)])
def test_a_vector_in_the_place_of_a_matrix_is_a_shard(layer: nn.Module) -> None:
    net = nn.Sequential(layer)
    layer.weight = nn.Parameter(layer.weight.detach().flatten()[:5])
    with pytest.raises(NotImplementedError, match=rf"The weight of '0', a {type(layer).__name__}, has shape \(5,\)\. "):
        Gluon(net, lr=0.1)
