"""The optimizer: one step by hand, reductions to known optimizers, the conformance contract, bad input."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

import lightning_gluon
from lightning_gluon import METHODS, Gluon
from tests._models import backward, network, weights
from tests._toys import needed

REPLAY_TOLERANCE = 1e-10  # fp64, exact SVD; measured 2e-16


# ---------------------------------------------------------------- definition


@pytest.mark.parametrize("method", ["gluon", "scion"])
def test_equals_a_replay_by_hand(method: str) -> None:
    """Ten lines of numpy-like code from the definition: spectral, sign and RMS directions, decay, both starts."""
    net = network(torch.float64)
    radius = {"hidden": 1.5, "head": 3.0, "bias": 0.25}
    optimizer = lightning_gluon.configure_optimizers(
        net, method, lr=0.03, weight_decay=0.1, radius=radius, momentum=0.8, orthogonalizer="svd"
    )
    routes = lightning_gluon.partition(net)
    x = {name: p.detach().clone() for name, p in net.named_parameters()}
    m: dict[str, torch.Tensor] = {}
    for k in range(8):
        backward(net, k)
        for name, p in net.named_parameters():
            start = p.grad.clone() if method == "gluon" else torch.zeros_like(p)
            m[name] = 0.8 * m.get(name, start) + 0.2 * p.grad
            if routes.role(name) == "hidden":
                u, _, vh = torch.linalg.svd(m[name], full_matrices=False)
                d = math.sqrt(p.shape[0] / p.shape[1]) * u @ vh
            elif p.ndim == 2:
                d = m[name].sign() / p.shape[1]
            else:
                d = m[name] * math.sqrt(p.numel()) / m[name].norm()
            x[name] = (1 - 0.03 * 0.1) * x[name] - 0.03 * radius[routes.role(name)] * d
        optimizer.step()
    assert {routes.role(name) for name in x} >= {"hidden", "head", "bias"}
    for name, p in net.named_parameters():
        assert (p - x[name]).abs().max() < REPLAY_TOLERANCE, name


def test_jordan_in_bf16_follows_torch_muon() -> None:
    """Same coefficients, dtype and scaling: 20 steps within 1e-2 of the distance moved (rounding of bf16 products)."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(s) / 8) for s in [(64, 48), (48, 64), (32, 32)]]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    start = torch.cat([p.detach().flatten().clone() for p in ours])
    a = Gluon(
        [{"params": ours, "role": "hidden"}],
        lr=0.02,
        method="muon",
        weight_decay=0.1,
        orthogonalizer="jordan",
        orthogonalizer_dtype=torch.bfloat16,
    )
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    for k in range(20):
        torch.manual_seed(k)
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape) + p.detach()
            q.grad = p.grad.clone()
        a.step()
        b.step()
    one, two = (torch.cat([p.detach().flatten() for p in some]) for some in (ours, theirs))
    # The five steps start at X / ||X||_F there and at X / ||X||_S8 here, so singular values end elsewhere in
    # [.68, 1.20].
    assert (one - two).norm() / (two - start).norm() < 1e-2


def _compare(
    ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, a: nn.Module, b: nn.Module, steps: int = 12
) -> None:
    for k in range(steps):
        backward(a, k)
        backward(b, k)
        ours.step()
        theirs.step()
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=1e-12)


def test_sgd_reduces_to_torch_sgd() -> None:
    a = network(torch.float64)
    b = copy.deepcopy(a)
    ours = Gluon(a, lr=0.1, method="sgd", momentum=0.9, weight_decay=0.01)
    theirs = torch.optim.SGD(b.parameters(), lr=0.1, momentum=0.9, dampening=0.9)
    for group in theirs.param_groups:  # torch's decay is coupled: take it out and decay by hand
        group["weight_decay"] = 0.0
    step = theirs.step

    def decayed() -> None:
        with torch.no_grad():
            for p in b.parameters():
                p.mul_(1 - 0.1 * 0.01)
        step()

    theirs.step = decayed  # type: ignore[method-assign]
    _compare(ours, theirs, a, b)


def test_adamw_is_torch_adamw() -> None:
    a = network(torch.float64)
    b = copy.deepcopy(a)
    ours = Gluon(a, lr=0.01, method="adamw", weight_decay=0.05)
    _compare(ours, torch.optim.AdamW(b.parameters(), lr=0.01, weight_decay=0.05), a, b)


def test_signsgd_and_normalized_sgd_by_definition() -> None:
    for method, direction in {"signsgd": torch.sign, "normalized-sgd": lambda g: g / g.norm()}.items():
        net = network(torch.float64)
        optimizer = Gluon(net, lr=0.01, method=method)
        for k in range(3):
            backward(net, k)
            expected = [p.detach() - 0.01 * direction(p.grad) for p in net.parameters()]
            optimizer.step()
            for p, e in zip(net.parameters(), expected, strict=True):
                torch.testing.assert_close(p.detach(), e, rtol=0, atol=1e-15)


def test_fused_and_batched_views_step_like_separate_matrices() -> None:
    """A fused qkv weight, a transposed Conv1D and a pair of transposes give the steps of the matrices they are."""
    from lightning_gluon.norms.views import MatrixView

    torch.manual_seed(0)
    q, k, v = (torch.randn(8, 6, dtype=torch.float64) for _ in range(3))
    grads = [torch.randn(8, 6, dtype=torch.float64) for _ in range(3)]
    fused = nn.Parameter(torch.cat([q, k, v]))
    fused.grad = torch.cat(grads)
    stored = nn.Parameter(q.T.contiguous())  # (in, out)
    stored.grad = grads[0].T.contiguous()
    group = {
        "params": [fused, stored],
        "role": "hidden",
        "views": [
            [view.astuple() for view in MatrixView.blocks((24, 6), sizes=(8, 8, 8))],
            [MatrixView.whole((6, 8), transposed=True).astuple()],
        ],
    }
    Gluon([group], lr=0.1, orthogonalizer="svd").step()
    separate = [nn.Parameter(w.clone()) for w in (q, k, v)]
    for p, g in zip(separate, grads, strict=True):
        p.grad = g.clone()
    Gluon(separate, lr=0.1, orthogonalizer="svd").step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in separate]), rtol=0, atol=1e-13)
    torch.testing.assert_close(stored.detach(), separate[0].detach().T, rtol=0, atol=1e-13)


# ---------------------------------------------------------------- contract, every method


@pytest.mark.parametrize("method", METHODS)
def test_contract(method: str) -> None:
    """Closure, untouched gradients, plain groups, state in a weights-only checkpoint, and a bit-exact resume."""
    net = network()
    optimizer = Gluon(net, lr=0.02, method=method, total_steps=8, **needed(method))
    calls = []

    def closure(step: int = 0) -> torch.Tensor:
        calls.append(step)
        return backward(net, step)

    first = optimizer.step(closure)
    assert len(calls) == 1 and first.item() > 0
    keys = {p: set(optimizer.state[p]) for p in net.parameters()}
    for k in range(1, 4):
        optimizer.step(lambda k=k: closure(k))
    assert len(calls) == (7 if optimizer.reference_point == "previous" else 4)
    assert optimizer.gradient_evaluations == len(calls)
    assert {p: set(optimizer.state[p]) for p in net.parameters()} == keys, "state is complete after the first step"
    gradients = [p.grad.clone() for p in net.parameters()]
    if optimizer.reference_point is None:
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    for group in optimizer.param_groups:
        assert {"name", "lr", "radius", "momentum", "weight_decay", "role"} <= set(group)
        _assert_plain({key: value for key, value in group.items() if key != "params"})
    other = network(seed=1)
    other.load_state_dict(net.state_dict())
    resumed = Gluon(other, lr=0.5, method=method, total_steps=8, **needed(method))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for k in range(4, 7):
        optimizer.step(lambda k=k: backward(net, k))
        resumed.step(lambda k=k: backward(other, k))
    assert torch.equal(weights(net), weights(other))
    assert resumed.gradient_evaluations == optimizer.gradient_evaluations


def _assert_plain(value: object) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            _assert_plain(item)
    else:
        assert value is None or type(value) in (int, float, str, bool), type(value)


@pytest.mark.parametrize("method", METHODS)
def test_scale_free_pickle_and_zero_gradients(method: str) -> None:
    net = network()
    optimizer = Gluon(net, lr=0.0, method=method, total_steps=8, **needed(method))
    before = weights(net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # what sharded checkpointing does first
    assert torch.equal(weights(net), before) and len(optimizer.state) == len(list(net.parameters()))
    clone = copy.deepcopy(optimizer)
    assert clone.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("scale", [1e-9, 1e9])
@pytest.mark.parametrize("method", ["gluon", "scion"])
def test_update_does_not_depend_on_the_gradients_scale(method: str, scale: float) -> None:
    nets = [network(), network()]
    for net, factor in zip(nets, (1.0, scale), strict=True):
        optimizer = Gluon(net, lr=0.02, method=method)
        for k in range(3):
            (backward(net, k) * 0).detach()
            for p in net.parameters():
                p.grad.mul_(factor)
            optimizer.step()
    moved = [weights(net) - weights(network()) for net in nets]
    assert (moved[0] - moved[1]).norm() / moved[0].norm() < 1e-3
