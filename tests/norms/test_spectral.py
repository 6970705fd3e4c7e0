"""The spectral norm in the units of a layer: scalings and kernels by hand, accuracy, options."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gluon.norms.needs import Context
from lightning_gluon.norms.spectral import SCALINGS, Alternating, Signs, Spectral, SpectralConv
from tests.norms._draw import inner, normal


def test_spectral_scalings_by_hand():
    assert Spectral("rms").scale(8, 2) == 2.0
    assert Spectral("rms").scale(2, 8) == 0.5
    assert Spectral("muon").scale(8, 2) == 2.0
    assert Spectral("muon").scale(2, 8) == 1.0
    assert Spectral("moonlight").scale(25, 4) == pytest.approx(1.0)
    assert Spectral("none").scale(8, 2) == 1.0
    # 3 x 3 convolution, 4 -> 16 channels: (1 / 9) sqrt(16 / 4)
    assert Spectral("rms").scale(16, 36, 9) == pytest.approx(2 / 9)


def test_spectral_rms_bounds_the_rms_of_every_output():
    """The definition: `||D x||_rms <= ||D||_{rms -> rms} ||x||_rms`, with equality for the top singular vector."""
    x = normal(6, 10)
    direction = torch.linalg.svd(x).Vh[0]
    gain = (x @ direction).square().mean().sqrt() / direction.square().mean().sqrt()
    assert Spectral().norm(x).item() == pytest.approx(gain.item(), rel=1e-12)


def test_conv_formula():
    x = normal(8, 3, 3, 3)
    expected = 9 * math.sqrt(3 / 8) * torch.linalg.matrix_norm(x.reshape(8, 27), 2)
    assert SpectralConv().norm(x).item() == pytest.approx(expected.item(), rel=1e-12)
    line = normal(6, 4, 5)
    expected = 5 * math.sqrt(4 / 6) * torch.linalg.matrix_norm(line.reshape(6, 20), 2)
    assert SpectralConv(kernel_dims=1).norm(line).item() == pytest.approx(expected.item(), rel=1e-12)
    point = normal(6, 4, 1, 1)
    assert SpectralConv().norm(point).item() == pytest.approx(Spectral().norm(point[..., 0, 0]).item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_default_lmo_is_accurate(scaling, dtype):
    norm = Spectral(scaling, dtype=dtype)
    g = normal(96, 160).float()
    d = norm.lmo(g)
    assert norm.norm(d).item() <= 1.01  # seen: 1.004
    assert inner(g, d) >= 0.985 * norm.dual_norm(g).item()  # seen: 0.995


def test_lmo_options_reach_the_orthogonaliser():
    g = normal(16, 16)
    few, many = Spectral(steps=2, dtype=torch.float64).lmo(g), Spectral(steps=12, dtype=torch.float64).lmo(g)
    exact = Spectral(orthogonalizer="svd").lmo(g)
    assert (many - exact).norm() < 1e-6 < (few - exact).norm()


def test_alternating_norm_is_spectral_at_its_period_and_signs_between() -> None:
    norm = Alternating(every=3, sign_radius=0.5, orthogonalizer="svd")
    kinds = [type(norm.at(step)) for step in range(6)]
    assert kinds == [Alternating, Signs, Signs, Alternating, Signs, Signs]
    assert Alternating(every=1).at(7) == Alternating(every=1)


def test_signs_are_as_large_in_rms_as_their_share_of_the_spectral_step() -> None:
    g = normal(6, 10)
    norm = Alternating(every=2, sign_radius=0.5, orthogonalizer="svd")
    spectral = norm.lmo(g)
    signs = norm.at(1)
    step = signs.lmo_(g[None].clone(), Context())[0] * signs.scale(6, 10)
    assert torch.equal(step.sign(), g.sign())
    rms = spectral.square().mean().sqrt().item()
    assert step.abs().max().item() == pytest.approx(0.5 * rms, rel=1e-12)


def test_choices_of_a_stack_are_made_once() -> None:
    g = normal(2, 6, 10)
    assert Spectral(orthogonalizer="svd").on(g, g.shape).dtype == torch.float64
    assert Spectral(dtype="bfloat16").on(g.float(), g.shape).dtype == torch.bfloat16
    assert Spectral(dtype="bfloat16").on(g.float(), g.shape).staging_dtype(g.float()) == torch.float32
