"""The Triton kernel of symmetric products under Triton's interpreter: no GPU, the same results."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
NAME = "lightning_gluon.norms.triton_products"


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import the kernel anew, to be interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sys.modules.pop(NAME, None)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


@pytest.mark.parametrize("rows", [64, 100], ids=str)
@pytest.mark.parametrize("base", ["none", "another", "the result"])
def test_the_kernel_equals_a_full_product(products: Any, rows: int, base: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, rows, 40)
    out = torch.full((2, rows, rows), 7.0)
    added = {"none": None, "another": torch.randn(2, rows, rows), "the result": out}[base]
    if added is not None:
        added.copy_(added + added.mT)
    expected = 0.5 * x @ x.mT
    if added is not None:
        expected += -2 * added
    products.half_product_(added, x, x.mT, out, beta=-2.0, alpha=0.5)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(out, out.mT)


def test_the_kernel_rounds_once(products: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 70, 33).half()
    out = torch.empty(1, 70, 70, dtype=torch.float16)
    products.half_product_(None, x, x.mT, out, beta=0.0, alpha=1.0)
    torch.testing.assert_close(out.double(), x.double() @ x.double().mT, rtol=1e-3, atol=1e-3)


def test_a_matrix_in_another_order_is_read_as_it_lies(products: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 24, 80).mT
    out = torch.empty(2, 80, 80)
    products.half_product_(None, x, x.mT, out, beta=0.0, alpha=1.0)
    torch.testing.assert_close(out, x @ x.mT, rtol=1e-5, atol=1e-4)


def test_the_kernel_compiles_for_a_gpu() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = importlib.import_module(NAME)
    names = kernel._tiles.arg_names
    types = dict.fromkeys(names, "i32") | dict.fromkeys(names[:4], "*fp16") | {"beta": "fp32", "alpha": "fp32"}
    fixed = {"has_base": True, "tile": kernel.TILE, "depth": kernel.INNER_TILE}
    source = ASTSource(fn=kernel._tiles, signature=types | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert "mma" in made.asm["ptx"]  # the tensor cores
