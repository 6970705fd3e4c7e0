"""Numbers that neither overflow nor divide by zero, and buffers that are used again."""

from __future__ import annotations

import torch

from lightning_gluon.norms.numerics import Workspace, accumulation_dtype, largest_magnitude, one_if_zero


def test_largest_magnitude_looks_at_both_signs() -> None:
    x = torch.tensor([[1.0, -3.0], [2.0, 0.5]])
    assert largest_magnitude(x, (-1,)).flatten().tolist() == [3.0, 2.0]
    assert largest_magnitude(x, (-2, -1)).item() == 3.0
    assert largest_magnitude(torch.full((2, 2), float("nan")), (-2, -1)).isnan().all()


def test_zeros_become_ones_to_divide_by() -> None:
    assert one_if_zero(torch.tensor([0.0, 2.0, 1e-40])).tolist() == torch.tensor([1.0, 2.0, 1e-40]).tolist()


def test_norms_are_accumulated_in_fp32_or_wider() -> None:
    kinds = [accumulation_dtype(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    assert kinds == [torch.float32, torch.float32, torch.float32, torch.float64]


def test_a_workspace_grows_and_is_used_again() -> None:
    workspace, like = Workspace(), torch.empty(0)
    small = workspace.take("x", (2, 3), like)
    large = workspace.take("x", (4, 5), like)
    again = workspace.take("x", (2, 3), like)
    assert again.data_ptr() == large.data_ptr() != small.data_ptr()
    assert workspace.nbytes() == 80
    assert workspace.take("y", (2, 3), like).data_ptr() != large.data_ptr()
    assert workspace.take("x", (4, 5), like, dtype=torch.float64).dtype == torch.float64
    assert workspace.nbytes() == 80 + 24 + 160
