"""Steps of the factors of a product: against the definition by eigenvalues in fp64, and what they promise."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.norms.factor import Factor, is_first
from lightning_gluon.norms.needs import Context, Partner
from lightning_gluon.testing import check_norm

EXACT = Factor(orthogonalizer="svd", dtype="float64")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inverse_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.rsqrt() @ vectors.T


def polar(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def reference(a: Tensor, b: Tensor, m_a: Tensor, m_b: Tensor, gain: float, d: float) -> tuple[Tensor, Tensor]:
    """The published steps, of length 1."""
    r = a.shape[0]
    c = math.sqrt(b.shape[0] / a.shape[1])
    eye = torch.eye(r, dtype=a.dtype)
    root_b, root_a = inverse_root(b.T @ b + d * eye), inverse_root(a @ a.T + d * eye)
    return c / (2 * gain) * root_b @ polar(root_b @ m_a), c / (2 * gain) * polar(m_b @ root_a) @ root_a


def directions(norm: Factor, weight: Tensor, partner: Partner, momentum: Tensor, kept: Tensor | None = None) -> Tensor:
    kept = torch.zeros(1, 1, 1, dtype=torch.float64) if kept is None else kept
    context = Context(weights=weight[None], partners=[partner], statistics={"row_square": kept})
    return norm.lmo_(momentum[None].clone(), context)[0]


@pytest.mark.parametrize(("rows", "columns"), [(12, 7), (7, 12), (9, 9), (3, 11)])
def test_steps_are_those_of_the_definition(rows: int, columns: int) -> None:
    a, b = draw(4, columns), draw(rows, 4, seed=1)
    m_a, m_b = draw(4, columns, seed=2), draw(rows, 4, seed=3)
    norm = Factor(orthogonalizer="svd", dtype="float64", damping=0.1)
    d = 0.1 * a.square().sum().item() / 4
    d_a, d_b = reference(a, b, m_a, m_b, 2.0, d)
    own_a = directions(norm, a, Partner(b, 2.0), m_a)
    own_b = directions(norm, b, Partner(a, 2.0), m_b)
    torch.testing.assert_close(own_a, d_a, rtol=0, atol=1e-4)  # up to the room that the decomposition needs
    torch.testing.assert_close(own_b, d_b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("gain", [0.5, 2.0])
@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e3])
def test_the_product_moves_by_the_radius_at_most(size: float, gain: float) -> None:
    a, b = draw(4, 10), size * draw(14, 4, seed=1)
    d_a = directions(EXACT, a, Partner(b, gain), draw(4, 10, seed=2))
    d_b = directions(EXACT, b, Partner(a, gain), draw(14, 4, seed=3))
    length = torch.linalg.matrix_norm(gain * (d_b @ a + b @ d_a), 2) / math.sqrt(14 / 10)
    assert length <= 1 + 1e-9
    assert length > 0.4, "the step of B alone is half of the radius"


def test_damping_goes_by_the_first_factor_at_the_start() -> None:
    a, b = draw(3, 8), torch.zeros(6, 3, dtype=torch.float64)
    kept = torch.zeros(1, 1, 1, dtype=torch.float64)
    first = directions(EXACT, a, Partner(b), draw(3, 8, seed=2), kept)
    assert kept.item() == pytest.approx(a.square().sum().item() / 3)
    torch.testing.assert_close(directions(EXACT, 5 * a, Partner(b), draw(3, 8, seed=2), kept), first)


def test_a_stack_is_each_of_its_members() -> None:
    """Members whose partners have other shapes, and factors of both sides, share one stack."""
    stack = torch.stack([draw(4, 8, seed=seed) for seed in range(4)])
    partners = [Partner(draw(6, 4, seed=7)), Partner(draw(9, 4, seed=8), 3.0)]
    partners += [Partner(draw(8, 20, seed=9)), Partner(draw(8, 5, seed=5))]
    kept = torch.zeros(4, 1, 1, dtype=torch.float64)
    context = Context(weights=stack.clone(), partners=partners, statistics={"row_square": kept})
    together = EXACT.lmo_(stack.clone(), context)
    for member, partner, whole in zip(stack, partners, together, strict=True):
        torch.testing.assert_close(directions(EXACT, member, partner, member), whole)
    assert [is_first((4, 8), partner.weight.shape) for partner in partners] == [True, True, False, False]


def test_contract() -> None:
    check_norm(EXACT)
    assert directions(EXACT, draw(2, 5), Partner(draw(4, 2)), torch.zeros(2, 5).double()).abs().max() == 0
    zero = Partner(torch.zeros(4, 2).double())
    assert directions(EXACT, torch.zeros(2, 5).double(), zero, draw(2, 5)).isfinite().all()


class Adapted(nn.Module):
    """A frozen map with an adapter, as torchtune keeps it."""

    def __init__(self, rank: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(8, 6), requires_grad=False)
        self.lora_A = nn.Linear(6, rank, bias=False, dtype=torch.float64)
        self.lora_B = nn.Linear(rank, 8, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.lora_B.weight)
        self.alpha, self.rank = 6, rank

    def change(self) -> Tensor:
        return self.alpha / self.rank * self.lora_B.weight @ self.lora_A.weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + self.change()).T


def train(model: nn.Module, optimizer: Gluon, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(draw(5, 6, seed=step)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("method", ["gluon", "muon", "gluon-mvr1", "limuon"])
def test_a_training_moves_the_map_by_lr_at_most(method: str) -> None:
    model = Adapted()
    optimizer = Gluon(model, lr=1e-3, method=method, orthogonalizer="svd")
    optimizer.two_point = "none"
    longest = 1e-3 * math.sqrt(8 / 6)
    for _ in range(4):
        before = model.change().detach()
        a, b = model.lora_A.weight.detach().clone(), model.lora_B.weight.detach().clone()
        train(model, optimizer, 1)
        d_a, d_b = model.lora_A.weight.detach() - a, model.lora_B.weight.detach() - b
        first_order = 2 * (d_b @ a + b @ d_a)
        assert torch.linalg.matrix_norm(first_order, 2) <= longest * (1 + 1e-9)
        change = model.change().detach() - before
        assert 0.3 * longest < torch.linalg.matrix_norm(change, 2) <= 1.01 * longest


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = Adapted()
    optimizer = Gluon(model, lr=0.1)
    train(model, optimizer, 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    saved = deepcopy(optimizer.state_dict())
    assert all("partners" not in group for group in saved["param_groups"])
    train(model, optimizer, 2)
    other = Adapted()
    other.load_state_dict(weights)
    resumed = Gluon(other, lr=0.1)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["partners"][0].weight is other.lora_B.weight
    train(other, resumed, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_without_a_partner_it_says_so() -> None:
    group = {"params": [nn.Parameter(torch.ones(2, 3))], "role": "adapter"}
    with pytest.raises(ValueError, match=r"'adapter_0' is not known.*role 'hidden'"):
        Gluon([group], lr=0.1)
