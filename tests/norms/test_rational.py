"""Rational steps against the SVD, on edge cases and on the spectra of recorded momenta."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lightning_gluon
from lightning_gluon.norms import rational
from lightning_gluon.norms.numerics import Workspace

ortho = importlib.import_module("lightning_gluon.norms.orthogonalize")  # the package exports the function by that name
orthogonalize = ortho.orthogonalize

MOMENTA = json.loads(Path(__file__).with_name("momenta.json").read_text())


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take rational steps for small matrices too."""
    monkeypatch.setattr(rational, "LEAST_ROWS", ((1.0, 1),))


def gaps_and_norms(g: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Return the LMO gap and `||D||` of every matrix, in fp64."""
    g, d = g.double(), d.double()
    norms = torch.linalg.matrix_norm(d, 2)
    inner = (g * d).sum((-2, -1))
    return 1 - inner / norms / torch.linalg.svdvals(g).sum(-1), norms


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def edge_matrix(seed: int, rows: int, columns: int) -> Tensor:
    """Return one of six spectra, with full, one-entry left or one-entry right singular vectors, at one of 13 scales."""
    left = torch.eye(rows) if seed % 3 == 0 else torch.linalg.qr(normal(seed, rows, rows))[0]
    right = torch.linalg.qr(normal(seed + 1000, columns, rows))[0]
    if seed % 3 == 1:
        right = torch.eye(columns)[:, :rows]
    index = torch.arange(1, rows + 1.0)
    outlier = torch.full((rows,), 1e-3)
    outlier[0] = 1.0
    values = [1 / index, 1 / index**2, torch.exp(-index / 4), torch.ones(rows), outlier, 1.0 * (index <= rows / 2)]
    return (left * values[seed % 6]) @ right.mT * 10.0 ** (seed % 13 - 6)


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (64, 300), (128, 896)], ids=str)
def test_edge_cases(any_size, shape):
    """60 matrices of each shape; the largest gap is that of the spectrum `1 / i^2`."""
    stack = torch.stack([edge_matrix(seed, *shape) for seed in range(60)])
    gaps, norms = gaps_and_norms(stack, orthogonalize(stack, dtype=torch.float32))
    assert gaps.min() > -1e-6
    assert gaps.max() <= 0.011  # seen: 0.0103
    assert norms.min() >= 0.999  # seen: 0.9995
    assert norms.max() <= 1.005  # seen: 1.0042


@pytest.mark.parametrize("model", MOMENTA)
@pytest.mark.parametrize("columns", [192, 768])
def test_recorded_momenta(model, columns):
    """Spectra of momenta in a real training, with random singular vectors; `benchmarks.momenta` records them."""
    spectra = torch.tensor([values for values in MOMENTA[model] if len(values) == 192])
    assert len(spectra) >= 36
    left = torch.linalg.qr(normal(2, 192, 192))[0]
    right = torch.linalg.qr(normal(1, columns, 192))[0]
    g = (left * spectra[:, None]) @ right.mT
    assert rational.pays(g)
    gaps, norms = gaps_and_norms(g, orthogonalize(g, dtype=torch.float32))
    assert gaps.mean() <= 0.004  # seen: 0.0036, of six polynomial steps 0.0028
    assert gaps.max() <= 0.0105  # seen: 0.0102, of six polynomial steps 0.0070
    assert norms.max() <= 1.003  # seen: 1.0020


def test_steps_are_the_best_of_their_kind():
    """They equioscillate: the maximum 1 is reached twice, the minimum at the left end and once inside."""
    low = 0.002
    for step in rational.dynamic_halley(low, 2):
        x = torch.linspace(low, 1, 4_000_001, dtype=torch.float64)
        y = x * (step.constant + step.weight / (x**2 + step.shift))
        assert y.max().item() == pytest.approx(1.0, abs=1e-9)
        assert y[-1].item() == pytest.approx(1.0, abs=1e-9)
        turn = int(y[: len(y) // 2].argmax())
        assert turn > 0
        assert y[turn].item() == pytest.approx(1.0, abs=1e-6)
        assert y[turn:].min().item() == pytest.approx(y[0].item(), abs=1e-6)
        low = y[0].item()
    assert low > 0.75


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [((192, 192), True), ((191, 191), False), ((128, 256), True), ((128, 255), False), ((127, 900), False)],
    ids=str,
)
def test_shape_decides(shape, chosen):
    assert rational.pays(torch.empty(3, *shape)) == chosen
    assert rational.pays(torch.empty(1, *shape)) == chosen


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_keep_the_polynomial(monkeypatch, dtype):
    g = normal(0, 192, 192)
    expected = orthogonalize(g, steps=6, dtype=dtype)
    monkeypatch.setattr(rational, "rational_factor", None)  # a call raises
    assert torch.equal(orthogonalize(g, dtype=dtype), expected)


@pytest.mark.parametrize("method", ["svd", "jordan", "you"])
def test_other_methods_and_a_number_of_steps_keep_the_polynomial(monkeypatch, method):
    monkeypatch.setattr(rational, "rational_factor", None)
    g = normal(0, 192, 192)
    orthogonalize(g, method, dtype=torch.float32)
    orthogonalize(g, steps=6, dtype=torch.float32)
    with pytest.raises(TypeError):
        orthogonalize(g, dtype=torch.float32)


def test_other_devices_keep_the_polynomial():
    assert rational.pays(torch.empty(1, 256, 256))
    assert not rational.pays(torch.empty(1, 256, 256, device="meta"))


def test_a_compiled_graph_takes_polynomials():
    stack = normal(0, 1, 192, 192)
    compiled = torch.compile(ortho.orthogonalize_, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(stack.clone()), ortho.orthogonalize_(stack.clone(), steps=6))


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let LAPACK refuse the second matrix of every stack, and leave NaN in its place."""
    decompose = torch.linalg.cholesky_ex

    def refuse(matrices: Tensor) -> tuple[Tensor, Tensor]:
        lower, info = decompose(matrices)
        lower[1], info[1] = math.nan, 7
        return lower, info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", refuse)
    yield


def test_a_refused_matrix_gets_the_polynomial(refusal, monkeypatch):
    stack = normal(0, 3, 192, 192)
    found = orthogonalize(stack, dtype=torch.float32)
    polynomial = orthogonalize(stack, steps=6, dtype=torch.float32)
    monkeypatch.undo()
    expected = orthogonalize(stack, dtype=torch.float32)
    torch.testing.assert_close(found[1], polynomial[1], rtol=0, atol=1e-6)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert (polynomial[0] - expected[0]).norm() > 1e-3  # the two are told apart


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_matrix_that_is_not_finite_stays_alone(value):
    stack = normal(0, 3, 192, 192)
    expected = orthogonalize(stack, dtype=torch.float32)
    stack[1, 0, 0] = value
    found = orthogonalize(stack, dtype=torch.float32)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert found[1].isnan().any()


@pytest.mark.parametrize("scale", [2.0**-100, 1e-30, 1e-9, 1e9, 1e30, 2.0**100])
def test_scale_free(scale):
    g = normal(0, 192, 400)
    once, scaled = orthogonalize(g, dtype=torch.float32), orthogonalize(g * scale, dtype=torch.float32)
    if math.frexp(scale)[0] == 0.5:
        assert torch.equal(once, scaled)
    assert (once - scaled).abs().max() <= 1e-4  # seen: 1e-5


@pytest.mark.parametrize("shape", [(192, 192), (128, 512)], ids=str)
def test_zero_rank_one_and_one_entry(shape):
    stack = torch.zeros(4, *shape)
    stack[1] = torch.outer(torch.ones(shape[0]), torch.arange(1.0, shape[1] + 1))
    stack[2, 3, 5] = -1e-20
    stack[3] = normal(0, *shape)
    found = orthogonalize(stack, dtype=torch.float32)
    assert torch.equal(found[0], torch.zeros(shape))
    gaps, norms = gaps_and_norms(stack[1:], found[1:])
    assert gaps.max() <= 0.001
    assert norms.max() <= 1.005
    torch.testing.assert_close(found[2], stack[2] * 1e20, rtol=0, atol=0.01)


@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_singular_vectors_of_few_entries(any_size, size, power):
    """Rounding errs most there: of 26,760 such matrices the largest norm was 1.012."""
    blocks = torch.linalg.qr(normal(size, 200, 32 // size, size, size))[0]
    left = torch.stack([torch.block_diag(*own) for own in blocks])
    right = torch.linalg.qr(normal(size + 1, 200, 64, 32))[0]
    values = normal(power, 200, 1, 32).abs().clamp(max=1) ** power
    g = (left * values) @ right.mT
    gaps, norms = gaps_and_norms(g, orthogonalize(g, dtype=torch.float32))
    assert gaps.max() <= 0.011
    assert norms.max() <= 1.015  # seen: 1.0053


def test_batch_equals_loop_and_transposes(any_size):
    stack = torch.stack([edge_matrix(seed, 40, 90) for seed in range(12)])
    batch = orthogonalize(stack, dtype=torch.float32)
    loop = torch.stack([orthogonalize(g, dtype=torch.float32) for g in stack])
    assert (batch - loop).norm() <= 1e-3 * loop.norm()
    assert torch.equal(orthogonalize(stack.mT, dtype=torch.float32), batch.mT)


def test_a_workspace_is_used_again():
    workspace, stack = Workspace(), normal(0, 2, 192, 192)
    first = ortho.orthogonalize_(stack.clone(), workspace=workspace).clone()
    held = workspace.nbytes()
    assert torch.equal(ortho.orthogonalize_(stack.clone(), workspace=workspace), first)
    assert workspace.nbytes() == held > 0


def test_an_optimizer_steps_along_it(monkeypatch):
    """A default step in fp32 on a CPU goes through the rational steps, and has the length of its radius."""
    calls = []
    iterate = rational.rational_factor
    monkeypatch.setattr(rational, "rational_factor", lambda x, space: calls.append(x.shape) or iterate(x, space))
    weight = torch.nn.Parameter(torch.zeros(192, 384))
    optimizer = lightning_gluon.Gluon([{"params": [weight], "role": "hidden"}], lr=0.1, orthogonalizer_dtype="float32")
    weight.grad = normal(0, 192, 384)
    optimizer.step()
    assert calls == [(1, 192, 384)]
    assert lightning_gluon.norms.Spectral().norm(weight.detach()).item() == pytest.approx(0.1, rel=0.005)
