"""LiMuon's memory with one gradient: both ends, what a rank forgets, what feedback keeps, and the bytes of all that."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from tests.estimators._replay import EXACT, STEPS, gap, gradient, optimizer_of, replayed, start, take, trained

B = 0.9
RANK = 2


def truncated(m: Tensor, rank: int) -> Tensor:
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def test_by_its_definition() -> None:
    """M <- b RSVD_r(M) + (1 - b) g; a sketch as wide as the matrix is the exact SVD."""
    m: list[Tensor] = []

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        g = gradient(step, path[-1])
        m.append(B * truncated(m[-1], RANK) + (1 - B) * g if m else g)
        return path[-1], m[-1]

    assert gap(trained("gluon-lowrank", rank=RANK, oversampling=8), replayed(estimate)) <= EXACT


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_limuon_by_its_definition(gamma: float) -> None:
    """M <- b (RSVD_r(M) + gamma D) + (1 - b) c_new."""
    m: list[Tensor] = []

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        new = gradient(step, path[-1])
        difference = new - gradient(step, path[-2]) if step else torch.zeros_like(new)
        m.append(B * (truncated(m[-1], RANK) + gamma * difference) + (1 - B) * new if m else new)
        return path[-1], m[-1]

    assert gap(trained("limuon", rank=RANK, oversampling=8, gamma=gamma), replayed(estimate)) <= EXACT


def test_full_rank_is_gluon() -> None:
    assert gap(trained("gluon-lowrank", rank=None), trained("gluon")) == 0
    with pytest.warns(UserWarning, match="rank=16 would not be smaller"):  # the row's own rank is no error
        assert gap(trained("gluon-lowrank"), trained("gluon")) == 0


def test_a_rank_that_was_asked_for_is_refused_where_nothing_takes_it() -> None:
    with pytest.raises(ValueError, match="got rank=12 and the largest matrix"):
        optimizer_of(nn.Parameter(start()), "gluon-lowrank", rank=12)


def momentum_after(steps: int, **options: Any) -> Tensor:
    """Return `M` as the next step will find it: the direction under no gradient, over what is left of it."""
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, "gluon-lowrank", **options)
    for step in range(steps):
        weight.grad = gradient(step, start())  # at one place, so that all options see the same gradients
        optimizer.step()
    factors = [optimizer.state[weight][f"{factor}0"].double() for factor in "USV"]
    kept = (factors[0] * factors[1].unsqueeze(-2)) @ factors[2].mT
    if options.get("feedback"):
        from lightning_gluon.estimators.quantize import QUANTIZERS

        state = optimizer.state[weight]
        kept = kept + QUANTIZERS[options["feedback"]].restore(state["E0"], state["E_scale0"], kept)
    return kept[0]


def test_feedback_keeps_what_the_truncation_drops() -> None:
    """Error of the carried momentum against the full one; measured .60 without, .0053 (8 bits) and .078 (4) with it."""
    full = torch.zeros_like(start())
    for step in range(STEPS):
        g = gradient(step, start())
        full = B * full + (1 - B) * g if step else g
    errors = {}
    for feedback in (None, "int8", "int4"):
        carried = momentum_after(STEPS, rank=RANK, oversampling=8, feedback=feedback)
        errors[feedback] = float((carried - full).norm() / full.norm())
    assert errors[None] > 0.2 and errors["int4"] < 0.1 and errors["int8"] < 0.01, errors
    assert errors["int8"] < errors["int4"] / 5, errors


def test_feedback_trains_like_the_full_momentum() -> None:
    full = trained("gluon")
    gaps = {
        feedback: gap(trained("gluon-lowrank", rank=RANK, feedback=feedback), full)
        for feedback in (None, "int8", "int4")
    }
    assert gaps["int8"] < gaps["int4"] < gaps[None] / 2, gaps


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.01), ("float16", 0.002)])
def test_factors_in_half_the_bytes(dtype: str, bound: float) -> None:
    whole = momentum_after(STEPS, rank=RANK)
    rounded = momentum_after(STEPS, rank=RANK, factor_dtype=dtype)
    assert 0 < float((rounded - whole).norm() / whole.norm()) < bound


def wide() -> nn.Linear:
    return nn.Linear(896, 512, bias=False)


@pytest.mark.parametrize(
    ("options", "state_bytes"),
    [
        ({}, 4 * 16 * (896 + 512 + 1)),
        ({"factor_dtype": "bfloat16"}, 2 * 16 * (896 + 512) + 4 * 16),
        ({"feedback": "int8"}, 4 * 16 * (896 + 512 + 1) + 896 * 512 * (1 + 4 / 128)),
        ({"feedback": "int4", "rank": 4}, 4 * 4 * (896 + 512 + 1) + 896 * 512 * (0.5 + 4 / 128)),
    ],
)
def test_bytes(options: dict[str, Any], state_bytes: int) -> None:
    """No second gradient, no previous iterate: the factors are all there is, as counted before and after a step."""
    net = wide()
    groups = [{"params": [net.weight], "role": "hidden"}]
    optimizer = Gluon(groups, lr=0.02, method="gluon-lowrank", **options)
    assert optimizer.memory()["state_bytes"] == state_bytes
    net.weight.grad = torch.randn(512, 896, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert optimizer.memory()["state_bytes"] == state_bytes
    assert optimizer.gradient_evaluations == 1 and not optimizer.needs_reference


@pytest.mark.parametrize("options", [{}, {"feedback": "int8"}, {"feedback": "int4", "factor_dtype": "bfloat16"}])
def test_resume_is_exact(options: dict[str, Any]) -> None:
    weight, other = nn.Parameter(start().float()), nn.Parameter(start().float())
    optimizer = optimizer_of(weight, "gluon-lowrank", rank=RANK, **options)
    for step in range(3):
        take(optimizer, weight, step)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = optimizer_of(other, "gluon-lowrank", rank=RANK, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        other.copy_(weight)
    for step in range(3, 6):
        take(optimizer, weight, step)
        take(resumed, other, step)
    assert torch.equal(weight, other)


def test_experts_and_kernels_keep_what_is_dropped_too() -> None:
    """Stacked matrices and views that are no plain matrix: feedback brings them close to the full momentum."""
    gaps = {}
    for feedback in (None, "int8"):
        torch.manual_seed(0)
        kernel = nn.Conv2d(12, 16, 3, bias=False)
        whole = nn.Conv2d(12, 16, 3, bias=False)
        whole.load_state_dict(kernel.state_dict())
        lowrank = Gluon(kernel, lr=0.05, method="gluon-lowrank", rank=RANK, orthogonalizer="svd", feedback=feedback)
        gluon = Gluon(whole, lr=0.05, orthogonalizer="svd")
        for step in range(4):
            drawn = torch.randn(kernel.weight.shape, generator=torch.Generator().manual_seed(step))
            kernel.weight.grad, whole.weight.grad = drawn, drawn
            lowrank.step()
            gluon.step()
        gaps[feedback] = float((kernel.weight - whole.weight).detach().norm())
    assert gaps["int8"] < gaps[None] / 5, gaps


def test_values_that_are_refused() -> None:
    with pytest.raises(ValueError, match="`feedback` of group 'hidden' to be one of int8, int4, None, but got 'int2'"):
        optimizer_of(nn.Parameter(start()), "gluon-lowrank", rank=RANK, feedback="int2")
    with pytest.raises(ValueError, match="`factor_dtype` of group 'hidden' to be a floating-point dtype"):
        optimizer_of(nn.Parameter(start()), "gluon-lowrank", rank=RANK, factor_dtype="int8")
