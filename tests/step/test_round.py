"""One step over all chunks: their size does not matter, and parameters without a gradient are left out."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon import Gluon
from tests._models import backward, network, weights


def test_chunks_and_stacks_do_not_change_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk for all, or one per parameter: the same weights up to the rounding of batched products."""
    from lightning_gluon.step import round as module
    from lightning_gluon.step.plan import build_plan

    results = []
    for numel in (1, 2**25):
        monkeypatch.setattr(module, "build_plan", lambda groups, n=numel: build_plan(groups, chunk_numel=n))
        net = network(torch.float64)
        optimizer = Gluon(net, lr=0.05, orthogonalizer_dtype="float64")
        for k in range(4):
            backward(net, k)
            optimizer.step()
        results.append(weights(net))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


def test_zero_gradient_gives_a_zero_step_and_none_is_skipped() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.1)
    backward(net, 0)
    net[0].weight.grad.zero_()
    net[0].bias.grad.zero_()
    net[2].weight.grad = None
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step()
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) == (name in ("0.weight", "0.bias", "2.weight")), name
    assert net[2].weight.grad is None and net[2].weight not in optimizer.state
    backward(net, 1)
    optimizer.step()
    assert not torch.equal(net[2].weight, before["2.weight"])
