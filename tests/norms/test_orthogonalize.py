"""Orthogonalisation against the SVD, on the spectra that gradients have."""

from __future__ import annotations

import dataclasses
import importlib
import math

import pytest
import torch
from torch import Tensor

from benchmarks.polar_coefficients import BEGINNINGS, minimax_schedule
from lightning_gluon import Gluon
from lightning_gluon.norms.coefficients import FEWER_STEPS, ORTHOGONALIZERS, POLAR_EXPRESS, YOU
from lightning_gluon.norms.numerics import Workspace, largest_magnitude

# The package exports the function under the module's name.
ortho = importlib.import_module("lightning_gluon.norms.orthogonalize")
products = importlib.import_module("lightning_gluon.norms.products")
iteration = importlib.import_module("lightning_gluon.norms.polar")
orthogonalize = ortho.orthogonalize

SHAPES = [(256, 256), (512, 128), (96, 672)]  # square, 4:1, 1:7
SPECTRA = ["gaussian", "1/i", "1/i^2", "low rank"]
# Largest LMO gap allowed and, in the comment, the largest one seen over these shapes and spectra.
GAP = {torch.bfloat16: 0.015, torch.float16: 0.015, torch.float32: 0.011}  # 0.0132, 0.0130, 0.0088


def matrix(shape: tuple[int, int], spectrum: str, seed: int = 0) -> Tensor:
    """Return an fp64 test matrix."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(shape, generator=generator, dtype=torch.float64)
    if spectrum == "gaussian":
        return gaussian
    if spectrum == "low rank":
        left = torch.randn(shape[0], 8, generator=generator, dtype=torch.float64)
        right = torch.randn(8, shape[1], generator=generator, dtype=torch.float64)
        return left @ right / 8**0.5 + 0.01 * gaussian
    u, s, v = torch.linalg.svd(gaussian, full_matrices=False)
    index = torch.arange(1, len(s) + 1, dtype=torch.float64)
    return u / index ** (2 if spectrum == "1/i^2" else 1) @ v


def polar(g: Tensor) -> Tensor:
    """Return U V^T by the SVD in fp64."""
    u, _, v = torch.linalg.svd(g.double(), full_matrices=False)
    return u @ v


def gap_and_norm(g: Tensor, d: Tensor) -> tuple[float, float]:
    """Return the LMO gap `1 - <g, d / ||d||> / ||g||_*` and `||d||`, in fp64."""
    d = d.double()
    top = torch.linalg.matrix_norm(d, 2)
    gap = 1 - (g * d).sum() / top / torch.linalg.svdvals(g).sum()
    return gap.item(), top.item()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", GAP, ids=str)
def test_default_reaches_the_dual_norm_without_leaving_the_ball(shape, spectrum, dtype):
    g = matrix(shape, spectrum)
    gap, norm = gap_and_norm(g, orthogonalize(g, dtype=dtype))
    assert -1e-6 < gap <= GAP[dtype]
    assert norm <= 1.01  # seen: 1.0056


# Largest gap and largest `||D||` allowed by the number of steps, and, in the comments, the largest seen: over small
# shapes, all spectra, and fp64, fp32, fp16 | bf16.
FEWER = {
    5: {"exact": (0.021, 1.004), "bf16": (0.027, 1.008)},  # 0.0195, 1.0016 | 0.0250, 1.0044
    4: {"exact": (0.043, 1.010), "bf16": (0.055, 1.016)},  # 0.0413, 1.0069 | 0.0518, 1.0102
    3: {"exact": (0.143, 1.020), "bf16": (0.150, 1.040)},  # 0.1366, 1.0164 | 0.1414, 1.0350
    2: {"exact": (0.350, 1.035), "bf16": (0.350, 1.060)},  # 0.3354, 1.0315 | 0.3340, 1.0545
    1: {"exact": (0.550, 1.115), "bf16": (0.550, 1.120)},  # 0.5375, 1.1090 | 0.5358, 1.1139
}


@pytest.mark.parametrize("steps", FEWER)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_schedule_is_solved_for_its_number_of_steps(steps, dtype):
    """The first five of six steps have a gap of 10 % and `||D||` of 1.12."""
    gap, norm = FEWER[steps]["bf16" if dtype == torch.bfloat16 else "exact"]
    for shape in ((128, 128), (256, 64), (48, 336)):
        for spectrum in SPECTRA:
            g = matrix(shape, spectrum)
            found = gap_and_norm(g, orthogonalize(g, steps=steps, dtype=dtype))
            assert found[0] <= gap
            assert found[1] <= norm


@pytest.mark.parametrize("steps", FEWER_STEPS)
def test_fewer_steps_solve_the_minimax_problem(steps):
    solved, _ = minimax_schedule(BEGINNINGS[steps], steps)
    listed = torch.tensor(ortho.step_coefficients("polar_express", steps), dtype=torch.float64)
    torch.testing.assert_close(listed, torch.tensor(solved, dtype=torch.float64), rtol=0, atol=1e-9)


def test_six_steps_and_more_are_the_authors():
    assert ortho.step_coefficients("polar_express") == ortho.step_coefficients(steps=6) == POLAR_EXPRESS[:6]
    assert ortho.step_coefficients(steps=8) == (*POLAR_EXPRESS, POLAR_EXPRESS[-1])
    assert ortho.step_coefficients("you", 3) == YOU[:3]


@pytest.mark.parametrize("shape", [(512, 1100), (640, 640)], ids=str)
def test_half_precision_holds_a_flat_spectrum_of_many_rows(shape):
    """Scaled to trace one, `A^2` and `1 / ||A^2||` leave the range of fp16 from some 500 rows on."""
    g = torch.linalg.qr(matrix(shape, "gaussian").mT)[0].mT if shape[0] < shape[1] else matrix(shape, "gaussian")
    gap, norm = gap_and_norm(g, orthogonalize(g, dtype=torch.float16))
    assert gap <= 0.01  # seen: 0.002
    assert norm <= 1.01


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("dtype", GAP, ids=str)
def test_low_rank_input_stays_bounded(rank, dtype):
    """The Schatten bound is tight there, so rounding is most likely to overstep the polynomial's interval."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        g = torch.randn(96, rank, generator=generator) @ torch.randn(rank, 400, generator=generator)
        gap, norm = gap_and_norm(g.double(), orthogonalize(g, dtype=dtype))
        assert gap <= 0.02
        assert norm <= 1.02


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_svd_is_the_polar_factor(shape):
    g = matrix(shape, "gaussian")
    torch.testing.assert_close(orthogonalize(g, "svd"), polar(g), rtol=0, atol=1e-12)


def test_polar_express_converges_to_the_polar_factor():
    g = matrix((96, 672), "gaussian")
    torch.testing.assert_close(orthogonalize(g, steps=10, dtype=torch.float64), polar(g), rtol=0, atol=1e-9)


def test_condition_number_1e12():
    u, _, v = torch.linalg.svd(matrix((64, 64), "gaussian"))
    g = u * torch.logspace(0, -12, 64, dtype=torch.float64) @ v
    torch.testing.assert_close(orthogonalize(g, "svd"), u @ v, rtol=0, atol=1e-3)  # 1e-16 * 1e12, seen 1e-4
    assert gap_and_norm(g, orthogonalize(g))[0] <= 0.02
    assert gap_and_norm(g, orthogonalize(g, steps=40, dtype=torch.float64))[0] <= 1e-6


@pytest.mark.parametrize("method", ["polar_express", "jordan", "you", "svd"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**30, 2.0**100])
def test_powers_of_two_change_nothing(method, scale):
    g = matrix((48, 96), "gaussian").float()
    assert torch.equal(orthogonalize(g * scale, method), orthogonalize(g, method))


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scale_free(scale, dtype):
    g = matrix((48, 96), "gaussian").float()
    once, scaled = orthogonalize(g, dtype=dtype), orthogonalize(g * scale, dtype=dtype)
    assert (once - scaled).norm() <= 1e-3 * once.norm()  # seen: 2e-4 in half precision, 1e-6 in fp32


def few_entries(count: int, rows: int, columns: int) -> torch.Tensor:
    """Return matrices whose left singular vectors have 2, 4 or 8 entries, some values large and most of them small."""
    generator = torch.Generator().manual_seed(0)

    def rotations(size: int, *batch: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(*batch, size, size, generator=generator))[0]

    found = []
    for size in (2, 4, 8):
        u = torch.stack([torch.block_diag(*blocks) for blocks in rotations(size, count, rows // size)])
        v = torch.linalg.qr(torch.randn(count, columns, rows, generator=generator))[0]
        for power in (2, 4):
            found.append((u * torch.rand(count, 1, rows, generator=generator) ** power) @ v.mT)
    return torch.cat(found)


@pytest.mark.parametrize("method", ["polar_express", "you", "jordan"])
@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 1000), (torch.float16, 100)], ids=str)
def test_rounding_never_makes_the_steps_diverge(method, dtype, count):
    """Gram form errs most where singular vectors have few entries: with too little room one matrix in 200 exploded."""
    stack = few_entries(count, 32, 64)
    for steps in (None, 7) if method == "polar_express" else (None,):
        largest = torch.linalg.matrix_norm(orthogonalize(stack, method, steps, dtype=dtype), 2).amax()
        assert largest <= {"polar_express": 1.02, "you": 1.2, "jordan": 1.28}[method]  # seen: 1.014, 1.16, 1.25


# Seen in bf16: 1.011, 1.021, 1.126, 1.089 and 1.120; in fp16: 1.003, 1.008, 1.021, 1.035 and 1.109.
@pytest.mark.parametrize(("steps", "bound"), [(5, 1.02), (4, 1.03), (3, 1.15), (2, 1.12), (1, 1.13)])
@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 500), (torch.float16, 100)], ids=str)
def test_rounding_never_makes_fewer_steps_diverge(steps, bound, dtype, count):
    stack = few_entries(count, 32, 64)
    assert torch.linalg.matrix_norm(orthogonalize(stack, steps=steps, dtype=dtype), 2).amax() <= bound


@pytest.mark.parametrize("value", [1e-30, 1e30, 1e-44])
def test_squares_that_leave_the_range_of_fp32(value):
    d = orthogonalize(torch.eye(8) * value)
    torch.testing.assert_close(d, torch.eye(8), rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_long_rows_of_equal_entries(dtype):
    """`X X^T` is 140,000 before normalisation: beyond fp16."""
    d = orthogonalize(torch.ones(2, 140_000), dtype=dtype)
    torch.testing.assert_close(d, torch.full_like(d, 1 / 280_000**0.5), rtol=0.02, atol=0)


@pytest.mark.parametrize("method", ORTHOGONALIZERS)
@pytest.mark.parametrize("shape", [(6, 6), (3, 12), (12, 3)], ids=str)
def test_zero_gives_zero_also_inside_a_batch(method, shape):
    stack = torch.stack([torch.zeros(shape), torch.randn(shape, generator=torch.Generator().manual_seed(1))])
    d = orthogonalize(stack, method)
    assert torch.equal(d[0], torch.zeros(shape))
    assert d[1].norm() > 0.5
    assert orthogonalize(torch.zeros(0, *shape), method).shape == (0, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_batch_equals_loop(shape, dtype):
    stack = torch.stack([matrix(shape, spectrum) * 10.0**k for k, spectrum in enumerate(SPECTRA)])
    batch = orthogonalize(stack.view(2, 2, *shape), dtype=dtype)
    loop = torch.stack([orthogonalize(g, dtype=dtype) for g in stack]).view_as(batch)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 2e-2}[dtype]  # per unit of the norm
    assert (batch - loop).norm() <= tolerance * loop.norm()


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 7])
@pytest.mark.parametrize("method", ["polar_express", "jordan", "you"])
def test_gram_form_equals_plain_form(monkeypatch, method, steps):
    g = matrix((40, 200), "gaussian")
    gram = orthogonalize(g, method, steps, torch.float64)
    monkeypatch.setattr(iteration, "GRAM_ASPECT", float("inf"))
    plain = orthogonalize(g, method, steps, torch.float64)
    torch.testing.assert_close(gram, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(70, 70), (61, 200)], ids=str)
def test_symmetric_products_equal_full_ones(monkeypatch, shape):
    g = torch.stack([matrix(shape, "1/i"), matrix(shape, "gaussian")])
    full = orthogonalize(g, dtype=torch.float64)
    monkeypatch.setattr(products, "SYMMETRIC_ROWS", 16)
    monkeypatch.setattr(products, "SYMMETRIC_ENTRIES", 0)
    torch.testing.assert_close(orthogonalize(g, dtype=torch.float64), full, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_one_entry_in_a_long_matrix(dtype):
    """`1 / ||X||_F^2` is 140,000 after the entries are scaled: beyond fp16."""
    g = torch.zeros(2, 140_000)
    g[0, 7] = 3.0
    torch.testing.assert_close(orthogonalize(g, dtype=dtype), g / 3, rtol=0, atol=0.02)


@pytest.mark.parametrize("columns", [2**20, 2**22], ids=str)
def test_one_entry_in_a_row_that_the_scale_does_not_fit_into_fp16(columns):
    g = torch.zeros(1, columns)
    g[0, 7] = 3.0
    torch.testing.assert_close(orthogonalize(g, dtype=torch.float16), g / 3, rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(40, 200), (64, 64)], ids=str)
@pytest.mark.parametrize("method", ["polar_express", "you", "jordan"])
def test_joined_constants_equal_separate_ones(monkeypatch, method, shape):
    g = matrix(shape, "gaussian")
    separate = orthogonalize(g, method, 6, torch.float64)
    joined = dataclasses.replace(iteration.PRECISIONS[torch.float64], joined=True)
    monkeypatch.setitem(iteration.PRECISIONS, torch.float64, joined)
    torch.testing.assert_close(orthogonalize(g, method, 6, torch.float64), separate, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, -7.0, math.nan, math.inf], ids=str)
def test_the_norm_that_a_gpu_takes_is_the_largest_magnitude(value):
    stack = torch.stack([matrix((8, 12), "gaussian"), matrix((8, 12), "1/i")])
    stack[1, 3, 4] = value
    taken = torch.linalg.vector_norm(stack, ord=math.inf, dim=(-2, -1), keepdim=True)
    assert torch.equal(taken.nan_to_num(-1.0), largest_magnitude(stack, (-2, -1)).nan_to_num(-1.0))


def test_jordan_equals_five_steps_by_hand():
    g = matrix((24, 40), "gaussian")
    x = g / g.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    torch.testing.assert_close(orthogonalize(g, "jordan", dtype=torch.float64), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(orthogonalize(g, "newton_schulz", dtype=torch.float64), x, rtol=0, atol=1e-10)


def test_jordan_agrees_with_torch_muon_in_bf16():
    muon = pytest.importorskip("torch.optim._muon")
    for shape in ((96, 96), (128, 96)):
        g = matrix(shape, "gaussian").float()
        theirs = muon._zeropower_via_newtonschulz(g, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
        ours = orthogonalize(g, "jordan", dtype=torch.bfloat16)
        assert (ours - theirs).norm() <= 0.03 * theirs.norm()  # two bf16 roundings of one computation


def test_polar_express_steps_are_minimax():
    """Each step equioscillates about 1 on the image of the interval of the one before: p(l), p(u) and both extrema."""
    low, high = 1e-3, 1.0
    for a, b, c in ortho.step_coefficients("polar_express", 6):
        x = torch.linspace(low, high, 2_000_001, dtype=torch.float64)
        y = a * x + b * x**3 + c * x**5
        error = max(1 - y.min().item(), y.max().item() - 1)
        assert abs((1 - y.min().item()) - error) <= 1e-4
        assert abs((y.max().item() - 1) - error) <= 1e-4
        low, high = 1 - error, 1 + error
    assert error == pytest.approx(1.185e-3, rel=1e-2)


def test_last_polar_express_step_is_the_cubic_fixed_point():
    a, b, c = ortho.step_coefficients("polar_express", 9)[-1]
    assert a + b + c == 1.0  # p(1) = 1
    assert a + 3 * b + 5 * c == 0.0  # p'(1) = 0
    assert 6 * b + 20 * c == 0.0  # p''(1) = 0


def test_coefficients_of_you_against_a_second_source():
    source = pytest.importorskip("pytorch_optimizer.optimizer.utils.matrix")
    text = importlib.import_module("inspect").getsource(source)
    for step in YOU:
        assert all(f"{abs(value):.4f}" in text for value in step)


@pytest.mark.parametrize("shape", [(8, 8), (8, 32)], ids=str)
def test_input_is_left_alone_and_dtype_kept(shape):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        g = matrix(shape, "gaussian").to(dtype).requires_grad_()
        before = g.detach().clone()
        d = orthogonalize(g)
        assert d.dtype == dtype
        assert d.device == g.device
        assert not d.requires_grad
        assert torch.equal(g.detach(), before)


def test_transposed_input_gives_transposed_output():
    g = matrix((40, 200), "gaussian")
    assert torch.equal(orthogonalize(g.T), orthogonalize(g).T)


def test_svd_ignores_directions_of_rounding_noise():
    u, _, v = torch.linalg.svd(matrix((16, 16), "gaussian"))
    g = u[:, :3] @ v[:3]
    torch.testing.assert_close(orthogonalize(g, "svd"), g, rtol=0, atol=1e-12)


def test_stack_entry_reuses_its_workspace():
    workspace = Workspace()
    stack = torch.stack([matrix((16, 64), "gaussian", seed).float() for seed in range(3)])
    expected = orthogonalize(stack, dtype=torch.float32)
    first = ortho.orthogonalize_(stack.clone(), workspace=workspace).clone()
    held = workspace.nbytes()
    second = ortho.orthogonalize_(stack.clone(), workspace=workspace)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert workspace.nbytes() == held > 0


def test_compiled_equals_eager():
    stack = matrix((12, 40), "gaussian").float()[None]
    compiled = torch.compile(ortho.orthogonalize_, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(stack.clone()), ortho.orthogonalize_(stack.clone()), rtol=0, atol=2e-5)


def test_default_dtype():
    kwargs = {"dtype": torch.float64}
    assert ortho.compute_dtype("cpu", method="svd", **kwargs) == torch.float64
    assert ortho.compute_dtype("cpu", method="svd", dtype=torch.bfloat16) == torch.float32
    assert ortho.compute_dtype("cpu", shape=(16, 1000)) == torch.float32
    assert ortho.compute_dtype("mps") == torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert ortho.compute_dtype("cpu", shape=(256, 256)) == (torch.bfloat16 if native else torch.float32)
    assert ortho.staging_dtype(torch.float16) == torch.float32
    assert ortho.staging_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3),), ValueError, r"shape \(\.\.\., m, n\), but got shape \(3,\)"),
        ((torch.ones(2, 2), "newton"), ValueError, r"`method` to be one of polar_express, .*svd, but got 'newton'"),
        ((torch.ones(2, 2), "jordan", 0), ValueError, r"`steps` to be a positive integer, but got 0"),
        ((torch.ones(2, 2, dtype=torch.complex64),), TypeError, r"real floating-point tensor, but got torch.complex64"),
        ((torch.ones(2, 2, dtype=torch.int64),), TypeError, r"real floating-point tensor, but got torch.int64"),
        ((torch.eye(2).to_sparse(),), TypeError, r"dense tensor, but got layout torch.sparse_coo with shape \(2, 2\)"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        orthogonalize(*arguments)


@pytest.mark.parametrize("options", [{"orthogonalizer": "svd"}, {"method": "limuon", "rank": 2}])
def test_nonfinite_gradients_pass_through_decompositions(options: dict) -> None:
    weights = [torch.nn.Parameter(torch.eye(6, 8)) for _ in range(2)]
    optimizer = Gluon(weights, on_nonfinite="ignore", **options)

    def closure() -> None:
        for index, weight in enumerate(weights):
            weight.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(index))
        weights[0].grad[0, 0] = math.nan

    for _ in range(2):
        optimizer.step(closure)
    assert weights[0].isnan().any()
    assert weights[1].isfinite().all() and (weights[1] - torch.eye(6, 8)).norm() > 0.01
