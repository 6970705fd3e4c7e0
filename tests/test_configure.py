"""The one line: what it returns, its schedules, its conversions and its errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import lightning_gluon
from lightning_gluon import METHODS, Gluon, RadiusSchedule, Schedule, configure_optimizers, equivalent_learning_rates
from tests._toys import needed


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def test_a_bare_optimizer_or_lightnings_dict() -> None:
    assert isinstance(configure_optimizers(network(), lr=0.02), Gluon)
    configured = configure_optimizers(network(), lr=0.02, schedule="cosine", total_steps=10)
    assert isinstance(configured["optimizer"], Gluon)
    assert configured["lr_scheduler"]["interval"] == "step"
    assert isinstance(configure_optimizers(network(), lr=0.02, warmup=3), dict)


@pytest.mark.parametrize("method", METHODS)
def test_groups_are_named_by_role(method: str) -> None:
    optimizer = configure_optimizers(network(), method, lr=0.02, radius={"head": 3.0}, total_steps=8, **needed(method))
    names = [group["name"] for group in optimizer.param_groups]
    assert names == [group["role"] for group in optimizer.param_groups] and "hidden" in names
    by_role = {group["role"]: group for group in optimizer.param_groups}
    assert by_role["head"]["radius"] == 3.0
    assert by_role["hidden"]["radius"] == METHODS[method].rules["hidden"].radius
    assert all(group["lr"] == 0.02 for group in optimizer.param_groups)


def test_vectors_are_well_below_and_tables_above_hidden() -> None:
    for method in ("gluon", "gluon-mvr1", "limuon"):
        rules = METHODS[method].rules
        assert (rules["hidden"].radius, rules["bias"].radius, rules["embedding"].radius) == (1.0, 0.1, 25.0)


FACTORS = [
    (Schedule("constant", warmup=4), {0: 0.25, 3: 1.0, 100: 1.0}),
    (Schedule("linear", 10), {0: 1.0, 5: 0.5, 10: 0.0, 11: 0.0}),
    (Schedule("cosine", 10, warmup=2), {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 10: 0.0}),
    (Schedule("wsd", 10, decay=0.5), {0: 1.0, 5: 1.0, 6: 0.8, 10: 0.0}),
    (Schedule("theory", rates=(0.75, 0.5)), {0: 1.0, 15: 0.125}),
    (Schedule("theory_constant", 1000, rates=(2 / 3, 2 / 3)), {0: 0.01, 999: 0.01}),
]


@pytest.mark.parametrize(("schedule", "expected"), FACTORS)
def test_factors_by_hand(schedule: Schedule, expected: dict[int, float]) -> None:
    for step, factor in expected.items():
        assert schedule.factor(step) == pytest.approx(factor, abs=1e-12)


def test_theory_drives_lr_and_momentum_through_the_optimizer() -> None:
    """Theorem 2: t_k = t_0 (k+1)^(-3/4), b_k = 1 - (k+1)^(-1/2), replayed by hand for three steps."""
    net = network().double()
    configured = configure_optimizers(net, "gluon", lr=0.1, schedule="theory", orthogonalizer="svd")
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    x, m = net[2].weight.detach().clone(), torch.zeros(16, 16, dtype=torch.float64)
    for k in range(3):
        torch.manual_seed(k)
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        b = 1 - (k + 1) ** -0.5
        m = b * m + (1 - b) * net[2].weight.grad
        u, _, vh = torch.linalg.svd(m)
        x = x - 0.1 * (k + 1) ** -0.75 * u @ vh
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(net[2].weight.detach(), x, rtol=0, atol=1e-12)
    assert optimizer.param_groups[0]["radius"] in (1.0, 0.1, 25.0), "schedules act on lr, never on radius"


def test_scheduler_state_is_plain_and_resumes() -> None:
    def build() -> dict:
        return configure_optimizers(network(), lr=0.1, schedule="cosine", total_steps=20, warmup=0.1)

    one, two = build(), build()
    for _ in range(7):
        one["optimizer"].step()
        one["lr_scheduler"]["scheduler"].step()
    state = one["lr_scheduler"]["scheduler"].state_dict()
    assert state["schedule"]["name"] == "cosine"
    two["optimizer"].load_state_dict(one["optimizer"].state_dict())
    two["lr_scheduler"]["scheduler"].load_state_dict(state)
    for some in (one, two):
        some["optimizer"].step()
        some["lr_scheduler"]["scheduler"].step()
    assert one["optimizer"].param_groups[0]["lr"] == two["optimizer"].param_groups[0]["lr"]


def test_conversions_give_the_same_spectral_size() -> None:
    for shape in [(768, 768), (3072, 768), (768, 3072)]:
        m, n = shape
        rates = equivalent_learning_rates(0.018, shape)
        ours = 0.018 * math.sqrt(m / n)
        assert rates["muon"] * math.sqrt(max(1, m / n)) == pytest.approx(ours)
        assert rates["moonlight"] * 0.2 * math.sqrt(max(m, n)) == pytest.approx(ours)
        assert rates["scion"] == pytest.approx(3.6e-4), "the authors' NanoGPT setting"
        u, _, vh = torch.linalg.svd(torch.randn(m // 16, n // 16), full_matrices=False)
        rms = equivalent_learning_rates(0.018, (m // 16, n // 16))["update_rms"]
        assert (ours * u @ vh).square().mean().sqrt().item() == pytest.approx(rms, rel=1e-4)


@pytest.mark.parametrize("shape", [(3,), (64, 3, 3, 3), (3, 0)])
def test_conversions_are_of_matrices(shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"`shape` to be \(out, in\) of a matrix, but got \("):
        equivalent_learning_rates(0.02, shape)


def test_rules_and_partitions_are_taken() -> None:
    net = network()
    routes = lightning_gluon.partition(net, rules={"4.weight": "hidden"})
    optimizer = configure_optimizers(net, lr=0.02, partition=routes)
    assert {group["role"] for group in optimizer.param_groups} == {"hidden", "bias"}
    optimizer = configure_optimizers(net, lr=0.02, rules={"4.weight": "hidden"})
    assert {group["role"] for group in optimizer.param_groups} == {"hidden", "bias"}
    with pytest.raises(ValueError, match="`partition` or `rules`, but got both"):
        configure_optimizers(net, lr=0.02, partition=routes, rules={"4.weight": "hidden"})


def test_groups_added_while_training_follow_the_schedule() -> None:
    net = network()
    net[0].requires_grad_(False)
    configured = configure_optimizers(net, lr=0.1, schedule="linear", total_steps=10)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    net[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(net[0].parameters()), "lr": 0.02})  # as Lightning's BaseFinetuning does
    optimizer.step()
    scheduler.step()
    late = [group for group in optimizer.param_groups if group["name"] in ("hidden_2", "bias_2")]
    assert [group["lr"] for group in late] == pytest.approx([0.02 * 0.4 / 0.5] * 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.4)
    saved = scheduler.state_dict()
    scheduler.load_state_dict(saved)
    scheduler.step()
    assert [group["lr"] for group in late] == pytest.approx([0.02 * 0.3 / 0.5] * 2)


@pytest.mark.parametrize(("method", "key"), [("gluon", "momentum"), ("muon", "momentum"), ("adamw", "betas")])
def test_schedulers_of_torch_cycle_the_momentum(method: str, key: str) -> None:
    optimizer = Gluon(network(), lr=0.1, method=method)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, max_momentum=0.8)
    assert all(group[key] == (0.8 if key == "momentum" else (0.8, 0.999)) for group in optimizer.param_groups)


BAD = [
    (dict(method="gluoon", lr=0.1), r"`method` to be one of gluon, .* got 'gluoon'"),
    (dict(lr=0.1, schedule="cosin"), r"`schedule` to be one of constant, cosine"),
    (dict(lr=0.1, schedule="cosine"), r"needs to know its length.*`total_steps=`"),
    (dict(lr=0.1, warmup=0.1), r"`total_steps` is unknown"),
    (dict(lr=0.1, warmup=-1), r"`warmup` to be a number of steps"),
    (dict(lr=0.1, warmup="0.1"), r"`warmup` to be a number of steps .* got '0.1'"),
    (dict(lr=0.1, schedule="wsd", total_steps="100"), r"`total_steps` is '100'"),
    (dict(lr=0.1, schedule="wsd", total_steps=5, decay=0.0), r"`decay` to satisfy 0 < decay <= 1"),
    (dict(method="muon", lr=0.1, schedule="theory"), r"needs a method whose theory has one"),
    (
        dict(lr=0.1, wieght_decay=0.1),
        r"Unknown option `wieght_decay` for method 'gluon-nesterov'.*Did you mean `weight_decay`\?",
    ),
    (dict(lr=0.1, momentm=0.9), r"Unknown option `momentm`.*momentum_dtype, .*; or lr, momentum.*mean `momentum`\?"),
    (dict(method="Muon", lr=0.1), r"`method` to be one of gluon, .* got 'Muon'. Did you mean `muon`\?"),
    (dict(method=["muon"], lr=0.1), r"`method` to be one of gluon, .* got \['muon'\]"),
    (dict(lr=0.1, warmup=math.inf), r"`warmup` to be a number of steps .* got inf"),
    (dict(lr=0.1, warmup=math.nan), r"`warmup` to be a number of steps .* got nan"),
    (
        dict(lr=0.1, schedule="wsd", total_steps=5, decay="0.2"),
        r"`decay` to be a share of the steps or one of plain, cautious, follows_lr, but got '0.2'",
    ),
    (dict(lr=0.1, partition={"a": "b"}), r"`partition` to be what `lightning_gluon.partition` returns, but got dict"),
    (dict(lr=0.1, partition=lightning_gluon.partition(network())), r"6 of its 6 parameters .* such as '0.weight'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure_optimizers(network(), **options)


def test_schedule_object_checks_itself() -> None:
    with pytest.raises(ValueError, match="whole number of steps >= 0"):
        Schedule("constant", warmup=-2)
    with pytest.raises(ValueError, match="total_steps` is 0"):
        Schedule("linear", 0)
    optimizer = Gluon(network(), lr=1.0)
    assert RadiusSchedule(optimizer, Schedule("linear", 4)).get_last_lr()[0] == 1.0


class Patches(nn.Module):
    """A patch embedding, a lookup table and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 32, 2, 2)
        self.table = nn.Embedding(10, 32)
        self.head = nn.Linear(32, 5)


def test_a_dense_input_layer_steps_as_a_map_and_tables_by_signs() -> None:
    net = Patches().double()
    optimizer = configure_optimizers(net, lr=0.02, orthogonalizer="svd")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    steps = {name: before[name] - p.detach() for name, p in net.named_parameters()}
    for name in ("table.weight", "head.weight"):
        torch.testing.assert_close(steps[name].abs(), torch.full_like(steps[name], 0.02 * 25 / 32))
    # 12 inputs per patch, no tap shared: RMS to RMS, at 0.3 of the hidden radius
    values = torch.linalg.svdvals(steps["patch_embed.weight"].flatten(1))
    torch.testing.assert_close(values, torch.full_like(values, 0.02 * 0.3 * (32 / 12) ** 0.5))
    names = {group["name"]: group["role"] for group in optimizer.param_groups}
    assert names["input"] == "input" and names["embedding"] == "embedding"


def test_input_layers_have_a_radius_of_their_own() -> None:
    groups = configure_optimizers(Patches(), lr=0.02, radius={"embedding": 7.0, "input": 3.0}).param_groups
    radii = {group["role"]: group["radius"] for group in groups}
    assert radii["embedding"] == 7.0 and radii["input"] == 3.0
    names = [group["name"] for group in configure_optimizers(Patches(), "muon", lr=0.02).param_groups]
    assert names == ["input", "embedding", "head", "bias"]


def test_a_norm_asked_for_in_a_rule_gets_its_own_group() -> None:
    net = network()
    routes = lightning_gluon.partition(net, rules={"4.weight": {"role": "head", "norm": "row"}})
    groups = {group["name"]: group for group in configure_optimizers(net, lr=0.02, partition=routes).param_groups}
    assert groups["head-row"]["norm"] == "row" and groups["head-row"]["param_names"] == ["4.weight"]
    assert "head" not in groups and groups["hidden"]["norm"] == "spectral"
