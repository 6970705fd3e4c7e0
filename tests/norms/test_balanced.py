"""Balance before and after the spectral LMO: replays of the definitions, and what each reduces to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon, configure_optimizers, partition
from lightning_gluon.norms.balanced import BALANCES, EQUILIBRATIONS, Balanced
from lightning_gluon.norms.spectral import Spectral
from lightning_gluon.testing import check_norm
from tests._toys import gradients

SHAPES = ((6, 10), (10, 6), (7, 7), (10, 6))
EXACT: dict[str, Any] = {"orthogonalizer": "svd", "scaling": "none"}


def polar(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


def updates(options: dict[str, Any], steps: int = 4) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return the last steps of one parameter per shape, per unit of lr, and all gradients."""
    params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    optimizer = Gluon([{"params": params, "role": "hidden"}], lr=1.0, weight_decay=0.0, **options)
    seen = []
    before = []
    for step in range(steps):
        gradients(params, step)
        seen.append([p.grad.clone() for p in params if p.grad is not None])
        before = [p.detach().clone() for p in params]
        optimizer.step()
    return [x - p.detach() for x, p in zip(before, params, strict=True)], seen


def nesterov(seen: list[Tensor], mu: float = 0.95) -> list[Tensor]:
    """Return the momenta of the papers: `buf = mu buf + g`, `u = g + mu buf`."""
    buffer = torch.zeros_like(seen[0])
    found = []
    for g in seen:
        buffer = mu * buffer + g
        found.append(g + mu * buffer)
    return found


def muoneq(us: list[Tensor]) -> Tensor:
    u = us[-1] / us[-1].square().sum(1, keepdim=True).sqrt()
    return 0.2 * math.sqrt(max(u.shape)) * polar(u)


def aurora(us: list[Tensor]) -> Tensor:
    g = us[-1]
    r, c = g.shape
    scale = math.sqrt(max(1, r / c))
    if r == c:
        return scale * polar(g)
    tall = g if r > c else g.T
    r, c = tall.shape
    d = 1 / tall.norm(dim=1, keepdim=True)
    u = polar(d * tall)
    d = d * ((c / r) / u.square().sum(1, keepdim=True)).sqrt()
    u = polar(d * tall)
    return scale * (u if g is tall else u.T)


def normuon(us: list[Tensor]) -> Tensor:
    v = torch.zeros(us[0].shape[0], 1, dtype=torch.float64)
    balanced = us[0]
    for u in us:
        o = polar(u)
        v = 0.95 * v + 0.05 * o.square().mean(1, keepdim=True)
        balanced = o / v.sqrt()
        balanced = balanced * o.norm() / balanced.norm()
    r, c = us[0].shape
    return math.sqrt(max(1, r / c)) * balanced


@pytest.mark.parametrize(("method", "replay"), [("muoneq", muoneq), ("aurora", aurora), ("normuon", normuon)])
def test_a_row_is_its_definition(method: str, replay: Callable[[list[Tensor]], Tensor]) -> None:
    steps, seen = updates({"method": method, "orthogonalizer": "svd"})
    for index, step in enumerate(steps):
        us = nesterov([gs[index] for gs in seen])
        torch.testing.assert_close(step, replay(us), rtol=0, atol=1e-10)


@pytest.mark.parametrize("equilibrate", EQUILIBRATIONS)
def test_the_contract_of_norms(equilibrate: str | None) -> None:
    check_norm(Balanced("rms", "svd", equilibrate=equilibrate))


@pytest.mark.parametrize("equilibrate", [key for key in EQUILIBRATIONS if key])
@pytest.mark.parametrize("shape", [(4, 8), (8, 4), (8, 8)])
def test_a_balanced_matrix_stays_as_it_is(equilibrate: str, shape: tuple[int, int]) -> None:
    """Rows and columns of a Hadamard matrix have equal lengths, and so have those of half of it."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    hadamard = torch.kron(two, torch.kron(two, two))
    g = hadamard[: shape[0], : shape[1]]
    torch.testing.assert_close(
        Balanced(equilibrate=equilibrate, **EXACT).lmo(g), Spectral(**EXACT).lmo(g), rtol=0, atol=1e-12
    )


def test_both_is_invariant_to_scales_of_rows_and_columns() -> None:
    g = torch.randn(5, 7, dtype=torch.float64)
    by_rows, by_columns = (Balanced(equilibrate=key, **EXACT) for key in ("rows", "columns"))
    rows = torch.logspace(-3, 3, 5, dtype=torch.float64)[:, None]
    columns = torch.logspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(by_rows.lmo(g * rows), by_rows.lmo(g), rtol=0, atol=1e-10)
    torch.testing.assert_close(by_columns.lmo(g * columns), by_columns.lmo(g), rtol=0, atol=1e-10)
    expected = polar(g / g.norm(dim=1, keepdim=True) / g.norm(dim=0))
    torch.testing.assert_close(Balanced(equilibrate="both", **EXACT).lmo(g), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_the_first_balanced_step_has_equal_lengths_and_the_spectral_size(balance: str, shape: tuple[int, int]) -> None:
    d = Balanced(balance=balance, **EXACT).lmo(torch.randn(shape, dtype=torch.float64))
    dimension = BALANCES[balance](*shape)
    lengths = d.norm(dim=dimension)
    torch.testing.assert_close(lengths, lengths.mean().expand_as(lengths), rtol=1e-12, atol=0)
    assert d.norm().item() == pytest.approx(math.sqrt(6), rel=1e-12)
    assert balance != "longer" or len(lengths) == 10


def test_a_zero_matrix_and_a_zero_row_stay() -> None:
    for norm in (Balanced(equilibrate="both", **EXACT), Balanced(balance="rows", **EXACT)):
        g = torch.randn(4, 6, dtype=torch.float64)
        g[1] = 0
        assert norm.lmo(g)[1].abs().max() < 1e-15 and norm.lmo(g).isfinite().all()
        assert torch.equal(norm.lmo(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_an_option_refines_the_spectral_groups_alone() -> None:
    """`equilibrate` given to muon changes its hidden matrices; without it groups are spectral, and steps are muon's."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    norms = {group["role"]: group["norm"] for group in Gluon(net, method="muon", equilibrate="rows").param_groups}
    assert norms["hidden"] == "balanced" and norms["head"] == "identity"
    plain = Gluon(net, method="muon", equilibrate=None).param_groups
    assert plain == Gluon(net, method="muon").param_groups
    assert {group["norm"] for group in plain} == {"spectral", "identity"}
    with pytest.raises(ValueError, match="Unknown option `balance` for method 'sgd'"):
        Gluon(net, method="sgd", balance="rows")


def test_matrices_are_chosen_by_name() -> None:
    """A rule of the partition names the norm of those that match, and the option goes with it."""
    net = nn.ModuleDict({"mlp": nn.Linear(8, 8), "attn": nn.Linear(8, 8)})
    known = partition(net, rules={"mlp.weight": {"role": "hidden", "norm": "balanced"}, "attn.weight": "hidden"})
    optimizer = Gluon(known, method="normuon", balance="longer")
    assert {group["norm"] for group in optimizer.param_groups if group["role"] == "hidden"} == {"balanced"}
    muon = Gluon(known, method="muon", balance_momentum=0.9)
    norms = {name: group["norm"] for group in muon.param_groups for name in group["param_names"]}
    assert norms["mlp.weight"] == "balanced" and norms["attn.weight"] == "spectral"


def test_an_option_goes_to_the_matrices_that_rules_name_and_to_no_others() -> None:
    """Balance in the MLP alone: its matrices step as with balance everywhere, the others as with none."""
    names = ("mlp", "attn")
    net = nn.ModuleDict({**{name: nn.Linear(8, 12) for name in names}, "out": nn.Linear(12, 2)})
    momenta = {name: torch.randn(12, 8) for name in names}

    def moved(**options: Any) -> dict[str, Tensor]:
        again = copy.deepcopy(net)
        optimizer = configure_optimizers(again, "gluon-nesterov", lr=0.1, **options)
        for name, gradient in momenta.items():
            again[name].weight.grad = gradient.clone()
        optimizer.step()
        return {name: again[name].weight.detach() for name in names}

    every, none = moved(balance="longer"), moved()
    mlp = moved(balance="longer", rules={"mlp.weight": {"role": "hidden", "norm": "balanced"}})
    assert torch.equal(mlp["mlp"], every["mlp"]) and not torch.equal(mlp["mlp"], none["mlp"])
    assert torch.equal(mlp["attn"], none["attn"]) and not torch.equal(mlp["attn"], every["attn"])


def test_an_option_goes_to_the_roles_it_is_given_for() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    known = partition(net, rules={"0.weight": "input"})

    def norms(balance: Any) -> dict[str, str]:
        groups = Gluon(known, method="gluon", balance=balance, lr=0.1).param_groups
        return {group["role"]: group["norm"] for group in groups}

    assert norms({"input": "rows"})["input"] == "balanced" and norms({"input": "rows"})["hidden"] == "spectral"
    assert norms({"hidden": "rows"})["input"] == "spectral" and norms({"hidden": "rows"})["hidden"] == "balanced"
    with pytest.raises(ValueError, match=r"keys of `balance` to be among .* got 'hiden'"):
        norms({"hiden": "rows"})
    with pytest.raises(ValueError, match=r"`balance` of group 'hidden' to be one of .*'row'"):
        norms({"hidden": "row"})


def test_bytes_of_the_statistics_are_counted() -> None:
    params = [nn.Parameter(torch.zeros(shape)) for shape in ((6, 10), (10, 6))]
    for balance, entries in {"rows": 16, "columns": 16, "longer": 20}.items():
        optimizer = Gluon([{"params": params, "role": "hidden"}], method="normuon", balance=balance)
        before = optimizer.memory()["state_bytes"]
        gradients(params, 0)
        optimizer.step()
        assert before == optimizer.memory()["state_bytes"] == 4 * (120 + entries)
