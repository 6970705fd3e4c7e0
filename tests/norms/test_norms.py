"""Norms: hand numbers, the duality that defines an LMO, and its invariances."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon.norms.entries import Max, Sign
from lightning_gluon.norms.slices import ColumnNorm, Euclidean, RMSVector, RowNorm
from lightning_gluon.norms.spectral import SCALINGS, Spectral, SpectralConv
from lightning_gluon.norms.table import make_norm
from tests.norms._draw import EXACT, inner, normal

# One line per norm: the norm, and the shape of one point.
CASES = {
    **{f"spectral-{scaling}": (Spectral(scaling, **EXACT), (6, 10)) for scaling in SCALINGS},
    "spectral-tall": (Spectral(**EXACT), (12, 5)),
    "conv1d": (SpectralConv(kernel_dims=1, **EXACT), (6, 4, 5)),
    "conv2d": (SpectralConv(**EXACT), (8, 3, 3, 3)),
    "conv3d": (SpectralConv(kernel_dims=3, **EXACT), (4, 3, 2, 2, 2)),
    "conv2d-muon": (SpectralConv("muon", **EXACT), (8, 3, 3, 3)),
    "sign": (Sign(), (6, 10)),
    "row": (RowNorm(), (6, 10)),
    "column": (ColumnNorm(), (6, 10)),
    "rms": (RMSVector(), (10,)),
    "euclidean": (Euclidean(), (6, 10)),
    "max": (Max(), (6, 10)),
    "sign-vector": (Sign(), (7,)),
    "row-vector": (RowNorm(), (7,)),
    "euclidean-vector": (Euclidean(), (7,)),
    "spectral-vector": (Spectral(**EXACT), (7,)),
}
every_norm = pytest.mark.parametrize(("norm", "shape"), CASES.values(), ids=CASES)


@every_norm
def test_lmo_attains_the_dual_norm_on_the_unit_sphere(norm, shape):
    for seed in range(3):
        g = normal(*shape, seed=seed)
        d = norm.lmo(g)
        assert inner(g, d) == pytest.approx(norm.dual_norm(g).item(), rel=1e-12)
        assert norm.norm(d).item() == pytest.approx(1.0, rel=1e-12)


@every_norm
def test_hoelder(norm, shape):
    slack = []
    for seed in range(30):
        x, g = normal(*shape, seed=seed), normal(*shape, seed=100 + seed)
        bound = (norm.norm(x) * norm.dual_norm(g)).item()
        assert abs(inner(x, g)) <= bound * (1 + 1e-12)
        slack.append(abs(inner(x, g)) / bound)
    assert max(slack) > 1e-3  # the bound is not vacuous


@every_norm
def test_norm_axioms(norm, shape):
    x, y = normal(*shape), normal(*shape, seed=1)
    for measure in (norm.norm, norm.dual_norm):
        assert measure(-2.5 * x).item() == pytest.approx(2.5 * measure(x).item(), rel=1e-12)
        assert measure(x + y).item() <= (measure(x) + measure(y)).item() * (1 + 1e-12)
        assert measure(torch.zeros_like(x)).item() == 0.0


@every_norm
def test_zero_gives_zero(norm, shape):
    assert torch.equal(norm.lmo(torch.zeros(shape)), torch.zeros(shape))


@every_norm
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_scale_free(norm, shape, scale):
    g = normal(*shape).float()
    torch.testing.assert_close(norm.lmo(g * scale), norm.lmo(g), rtol=0, atol=1e-5)
    assert norm.dual_norm(g * scale).item() == pytest.approx(norm.dual_norm(g).item() * scale, rel=1e-5)
    assert norm.norm(g * scale).item() == pytest.approx(norm.norm(g).item() * scale, rel=1e-5)


@every_norm
def test_batch_equals_loop(norm, shape):
    if len(shape) < norm.rank:
        pytest.skip("a vector has no batch of its own under a matrix norm")
    g = normal(2, 3, *shape) * torch.logspace(-9, 9, 6, dtype=torch.float64).view(2, 3, *[1] * len(shape))
    points = g.flatten(0, 1)
    for measure in (norm.norm, norm.dual_norm):
        assert measure(g).shape == (2, 3)
        torch.testing.assert_close(measure(g).flatten(), torch.stack([measure(p) for p in points]), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.lmo(g), torch.stack([norm.lmo(p) for p in points]).view_as(g), rtol=0, atol=1e-10)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_device_and_input_are_kept(norm, shape, dtype):
    g = normal(*shape).to(dtype)
    before = g.clone()
    d = norm.lmo(g)
    assert (d.dtype, d.device, d.shape) == (g.dtype, g.device, g.shape)
    assert torch.equal(g, before)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for value in (norm.norm(g), norm.dual_norm(g)):
        assert value.dtype == wide
        assert value.shape == ()
    tolerance = 1e-6 if dtype in (torch.float64, torch.float32) else 0.02
    assert norm.norm(d.double()).item() == pytest.approx(1.0, rel=tolerance)


@every_norm
def test_non_contiguous_input(norm, shape):
    g = normal(*shape[::-1]).permute(*range(len(shape))[::-1])
    torch.testing.assert_close(norm.lmo(g), norm.lmo(g.contiguous()), rtol=0, atol=1e-12)


# Hand numbers ---------------------------------------------------------------------------------------------------------


# The default, inexact orthogonaliser ----------------------------------------------------------------------------------


# Registry and errors --------------------------------------------------------------------------------------------------


def test_empty_batch():
    assert Spectral().lmo(torch.zeros(0, 4, 3)).shape == (0, 4, 3)
    assert Spectral().norm(torch.zeros(0, 4, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make_norm("spectrum"), ValueError, r"`norm` to be one of spectral, .*identity, but got 'spectrum'"),
        (lambda: make_norm("sign", scaling="rms"), TypeError, r"norm 'sign' to be among \[\], but got \['scaling'\]"),
        (lambda: Spectral("mup"), ValueError, r"`scaling` to be one of rms, muon, moonlight, none, but got 'mup'"),
        (lambda: Spectral(orthogonalizer="qr"), ValueError, r"`orthogonalizer` to be one of .*, but got 'qr'"),
        (lambda: Spectral(steps=-1), ValueError, r"`steps` to be a positive integer, but got -1"),
        (lambda: SpectralConv().lmo(torch.ones(3, 3)), ValueError, r"kernel_dims=2, but got shape \(3, 3\)"),
        (lambda: RMSVector().norm(torch.tensor(1.0)), ValueError, r"at least 1 dimension\(s\), but got shape \(\)"),
        (lambda: Spectral().norm(torch.tensor(1.0)), ValueError, r"at least 2 dimension\(s\), but got shape \(\)"),
        (lambda: Max().lmo(torch.ones(2, 2, dtype=torch.cfloat)), TypeError, r"real floating-point .*complex64"),
        (lambda: Sign().lmo(torch.ones(2, 2, dtype=torch.int32)), TypeError, r"real floating-point .*int32"),
        (lambda: RowNorm().lmo(torch.eye(2).to_sparse()), TypeError, r"dense tensor, but got layout torch.sparse_coo"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
