"""The one place where a benchmark reads what another library does not export.

`torch.optim.Muon` has no public function for its orthogonalization. Its step could stand in for it, but the step also
moves momentum and weights, and those would then be part of the time. The private function below is the one that the
step of torch 2.12 to 2.14 calls; a test compares both, so a release that moves or changes it is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.optim import _muon
from torch.optim._muon import _zeropower_via_newtonschulz

__all__ = ["torch_muon", "torch_muon_in"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPS = 1e-7


def torch_muon(matrix: Tensor) -> Tensor:
    """Orthogonalize a matrix as `torch.optim.Muon` does: five Newton-Schulz steps in bfloat16.

    Args:
        matrix: Shape (m, n).

    Returns:
        An approximation of `U V^T` in bfloat16, with singular values between about 0.7 and 1.2.
    """
    return _zeropower_via_newtonschulz(matrix, COEFFICIENTS, STEPS, EPS)


@contextmanager
def torch_muon_in(dtype: torch.dtype) -> Iterator[None]:
    """Let steps of `torch.optim.Muon` multiply in another dtype, by the same operators.

    Args:
        dtype: Dtype of the products.
    """

    def orthogonalized(grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float) -> Tensor:
        a, b, c = ns_coefficients
        x = grad.to(dtype, copy=True)
        tall = x.shape[0] > x.shape[1]
        if tall:
            x = x.T
        x.div_(x.norm().clamp(min=eps))
        for _ in range(ns_steps):
            gram = x @ x.T
            update = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.addmm(x, update, x, beta=a)
        return x.T if tall else x

    with mock.patch.object(_muon, "_zeropower_via_newtonschulz", orthogonalized):
        yield
