"""The randomised SVD of stacks: its error, on the way of a CPU and on that of a GPU, and inputs that have none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_gluon import Gluon
from lightning_gluon.estimators import low_rank
from lightning_gluon.estimators.low_rank import compress, expand, orthonormal
from lightning_gluon.norms.views import MatrixView

RANK = 8
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "1 / i": lambda i: 1 / i,
    "1 / i^2": lambda i: i**-2,
    "exponential": lambda i: torch.exp(-i / 4),
    "flat": torch.ones_like,
    "cliff": lambda i: torch.where(i <= RANK - 2, 1.0, 1e-4),
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def stack(spectrum: str, batch: int = 3, rows: int = 48, columns: int = 80) -> tuple[Tensor, float]:
    """Return fp64 matrices with a spectrum, and the least error that a matrix of the rank has."""
    values = SPECTRA[spectrum](torch.arange(1.0, rows + 1, dtype=torch.float64))
    draw = generator()
    left = torch.linalg.qr(torch.randn(batch, rows, rows, generator=draw, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(batch, columns, rows, generator=draw, dtype=torch.float64)).Q
    return (left * values) @ right.mT, math.sqrt(batch * float(values[RANK:].square().sum()))


def by_svd(matrices: Tensor, oversampling: int = 5, power_iterations: int = 1) -> Tensor:
    """Return the same approximation by QR decompositions and a singular value decomposition."""
    sketch = torch.randn(matrices.shape[-1], RANK + oversampling, generator=generator(), dtype=matrices.dtype)
    basis = torch.linalg.qr(matrices @ sketch).Q
    for _ in range(power_iterations):
        basis = torch.linalg.qr(matrices @ torch.linalg.qr(matrices.mT @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.mT @ matrices, full_matrices=False)
    return basis @ (left[..., :RANK] * values[..., None, :RANK]) @ right[..., :RANK, :]


@pytest.fixture(params=["cpu", "gpu"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take the way of a device."""
    if request.param == "gpu":
        monkeypatch.setattr(low_rank, "_leading", low_rank._iterated)
    return request.param


@pytest.mark.parametrize("power_iterations", [0, 1])
@pytest.mark.parametrize("spectrum", ["1 / i", "1 / i^2", "exponential"])
def test_in_fp64_it_is_the_truncated_svd(spectrum: str, power_iterations: int) -> None:
    matrices, _ = stack(spectrum)
    found = expand(*compress(matrices, rank=RANK, power_iterations=power_iterations, generator=generator()))
    assert (found - by_svd(matrices, power_iterations=power_iterations)).abs().max() < 1e-11


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_error_is_that_of_the_svd(way: str, spectrum: str) -> None:
    """Measured: the same to 1e-5 on a CPU, within 0.2 % on a GPU."""
    matrices, best = stack(spectrum)
    left, values, right = (factor.double() for factor in compress(matrices.float(), rank=RANK, generator=generator()))
    error, known = ((m - matrices).norm() / best for m in (expand(left, values, right), by_svd(matrices)))
    assert error < (1.0001 if way == "cpu" else 1.004) * known
    identity = torch.eye(RANK, dtype=torch.float64)
    assert (left.mT @ left - identity).abs().max() < 1e-6
    assert (right.square().sum(-2) - 1).abs().max() < 1e-6
    assert (values.diff() < 1e-3 * values[..., :1]).all()  # the largest come first


@pytest.mark.parametrize("size", [1e-35, 1e-30, 1.0, 1e30])
def test_matrices_of_a_smaller_rank_keep_all_they_have(way: str, size: float) -> None:
    matrices = size * torch.randn(2, 30, 3, generator=generator()) @ torch.randn(3, 40, generator=generator())
    left, values, right = compress(matrices, rank=RANK, generator=generator())
    assert (expand(left, values, right) - matrices).abs().max() < 1e-5 * matrices.abs().max()
    assert left.abs().max() < 1.001


def test_zero_stays_zero_and_what_is_not_finite_stays_in_its_matrix(way: str) -> None:
    matrices = torch.randn(3, 12, 20, generator=generator())
    matrices[1] = 0.0
    matrices[2, 3, 4] = math.nan
    alone = expand(*compress(matrices[:1], rank=RANK, generator=generator()))
    found = expand(*compress(matrices, rank=RANK, generator=generator()))
    torch.testing.assert_close(found[:1], alone)
    assert (found[1] == 0).all()
    assert found[2].isnan().any()


def test_columns_that_are_the_same_get_a_basis() -> None:
    columns = torch.ones(1, 20, 3) + 1e-6 * torch.randn(1, 20, 3, generator=generator())
    basis = orthonormal(columns, rounds=3)
    assert (basis.mT @ basis - torch.eye(3)).abs().max() < 1e-5


def test_a_stack_is_its_matrices_one_by_one() -> None:
    """Matrices, kernels and experts of one shape, each as if it were alone."""
    shapes = {"left": (8, 12), "right": (8, 12), "kernel": (8, 4, 3), "experts": (2, 8, 12)}
    views = dict.fromkeys(shapes) | {"experts": [MatrixView.whole((2, 8, 12)).astuple()]}
    together = {name: start(name, shape) for name, shape in shapes.items()}
    optimizers = [optimizer_of(together, views)]
    apart = {name: start(name, shape) for name, shape in shapes.items()}
    optimizers += [optimizer_of({name: parameter}, views) for name, parameter in apart.items()]
    for step in range(3):
        for name, shape in shapes.items():
            gradient = torch.randn(
                shape, generator=torch.Generator().manual_seed(step + len(name)), dtype=torch.float64
            )
            together[name].grad = gradient if (name, step) != ("right", 0) else None
            apart[name].grad = together[name].grad
        for optimizer in optimizers:
            optimizer.step()
    for name, parameter in apart.items():
        if name != "right":  # the sketch is drawn by the number of the step, which a pause keeps back
            torch.testing.assert_close(together[name], parameter, rtol=0, atol=1e-11)
    assert optimizers[0].state[together["right"]]["U0"].shape == (1, 8, 2)


def start(name: str, shape: tuple[int, ...]) -> torch.nn.Parameter:
    draw = torch.Generator().manual_seed(len(name))
    return torch.nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64))


def optimizer_of(params: dict[str, torch.nn.Parameter], views: dict) -> Gluon:
    group = {"params": list(params.values()), "role": "hidden", "views": [views[name] for name in params]}
    return Gluon([group], lr=0.1, method="gluon-lowrank", rank=2, orthogonalizer="svd")
