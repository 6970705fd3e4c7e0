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

REPLAY_TOLERANCE = 1e-10  # fp64, exact SVD; measured 2e-16


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.LayerNorm(24), nn.Linear(24, 5))
    return net.to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(64, 12, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.sin(3 * x[:, :5]).to(dtype)


def backward(net: nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step, next(net.parameters()).dtype)
    net.zero_grad()
    loss = (net(x) - y).square().mean()
    loss.backward()
    return loss


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])


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


# ---------------------------------------------------------------- contract, every method


@pytest.mark.parametrize("method", METHODS)
def test_contract(method: str) -> None:
    """Closure, untouched gradients, plain groups, state in a weights-only checkpoint, and a bit-exact resume."""
    net = network()
    optimizer = Gluon(net, lr=0.02, method=method, total_steps=8)
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
    resumed = Gluon(other, lr=0.5, method=method, total_steps=8)
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
    optimizer = Gluon(net, lr=0.0, method=method, total_steps=8)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_keeps_its_dtype_on_resume(dtype: torch.dtype) -> None:
    for momentum_dtype in (None, "bfloat16"):
        net = network(dtype)
        optimizer = Gluon(net, lr=0.02, momentum_dtype=momentum_dtype)
        backward(net, 0)
        optimizer.step()
        expected = torch.bfloat16 if momentum_dtype else torch.promote_types(dtype, torch.float32)
        resumed = Gluon(network(dtype), lr=0.02, momentum_dtype=momentum_dtype)
        resumed.load_state_dict(optimizer.state_dict())
        for some in (optimizer, resumed):
            assert {state["momentum"].dtype for state in some.state.values()} == {expected}
        assert all(p.dtype == dtype for p in net.parameters())


def test_load_matches_by_name_not_by_position() -> None:
    net = network()
    named = list(net.named_parameters())
    optimizer = Gluon(named, lr=0.02)
    backward(net, 0)
    optimizer.step()
    shuffled = Gluon(named[::-1], lr=0.02)
    shuffled.load_state_dict(optimizer.state_dict())
    for p in net.parameters():
        assert torch.equal(shuffled.state[p]["momentum"], optimizer.state[p]["momentum"])


def test_load_into_another_model_changes_nothing() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02)
    backward(net, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    other = Gluon([(f"x{name}", p) for name, p in network().named_parameters()], lr=0.03)
    with pytest.raises(ValueError, match=r"groups hidden .* but this optimizer has|lacks '.*0\.weight'"):
        other.load_state_dict(saved)
    assert not other.state and other.param_groups[0]["lr"] == 0.03


def test_nonfinite_gradients() -> None:
    for mode in ("raise", "skip", "ignore"):
        net = network()
        optimizer = Gluon(net, lr=0.02, on_nonfinite=mode)
        backward(net, 0)
        optimizer.step()
        before, state = weights(net), copy.deepcopy(optimizer.state_dict())
        backward(net, 1)
        net[2].weight.grad[3, 4] = math.inf
        if mode == "raise":
            with pytest.raises(FloatingPointError, match=r"Non-finite gradient in '2.weight' \(24, 24\).*on_nonfinite"):
                optimizer.step()
        else:
            optimizer.step()
        if mode == "ignore":
            assert not weights(net).isfinite().all()
        else:
            assert torch.equal(weights(net), before)
            after = optimizer.state_dict()
            assert after["param_groups"] == state["param_groups"]
            assert all(
                torch.equal(after["state"][i]["momentum"], state["state"][i]["momentum"]) for i in state["state"]
            )


def test_state_is_matched_without_the_names_of_wrappers() -> None:
    net = network()
    optimizer, wrapped = Gluon(net, lr=0.1), Gluon(torch.compile(net, backend="eager"), lr=0.2)
    assert wrapped.param_groups[0]["param_names"][0] == "_orig_mod.0.weight"
    backward(net, 0)
    optimizer.step()
    wrapped.load_state_dict(optimizer.state_dict())
    assert wrapped.param_groups[0]["lr"] == 0.1
    assert torch.equal(wrapped.state[net[0].weight]["momentum"], optimizer.state[net[0].weight]["momentum"])


# ---------------------------------------------------------------- groups


def test_late_groups_are_completed_routed_and_renamed() -> None:
    net = network()
    for p in net[2].parameters():
        p.requires_grad = False
    optimizer = Gluon(lightning_gluon.partition(net), lr=0.02, weight_decay=0.1)
    for p in net[2].parameters():
        p.requires_grad = True
    optimizer.add_param_group({"params": list(net[2].parameters()), "lr": 0.005})  # as BackboneFinetuning does
    added = [group for group in optimizer.param_groups if group["lr"] == 0.005]
    assert {group["name"] for group in added} == {"hidden_2", "bias_2"}
    assert all(group["weight_decay"] == 0.1 for group in added)
    assert {name for group in added for name in group["param_names"]} == {"2.weight", "2.bias"}
    backward(net, 0)
    optimizer.step()
    assert len(optimizer.state) == len(list(net.parameters()))


def test_mixed_groups_with_their_own_options() -> None:
    net = network()
    optimizer = Gluon(
        [
            {"params": [net[0].weight, net[2].weight], "role": "hidden", "momentum": 0.5, "scaling": "muon"},
            {"params": [net[5].weight], "role": "head", "norm": "row", "radius": 3.0},
            {
                "params": [p for p in net.parameters() if p.ndim == 1],
                "role": "bias",
                "estimator": "adamw",
                "norm": "identity",
            },
        ],
        lr=0.02,
    )
    for k in range(3):
        backward(net, k)
        optimizer.step()
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.9, 0.9]
    assert "exp_avg" in optimizer.state[net[0].bias] and "momentum" in optimizer.state[net[5].weight]


def test_groups_without_a_role_are_routed_by_shape_and_named_apart() -> None:
    net = network()
    groups = [{"params": net[0].parameters(), "lr": 0.1, "name": "stem"}, {"params": net[2].parameters()}]
    optimizer = Gluon([*groups, {"params": net[5].parameters()}], lr=0.02)
    assert [(g["name"], g["role"], g["norm"], g["lr"]) for g in optimizer.param_groups] == [
        ("stem-hidden", "hidden", "spectral", 0.1),
        ("stem-bias", "bias", "rms", 0.1),
        ("hidden", "hidden", "spectral", 0.02),
        ("bias", "bias", "rms", 0.02),
        ("hidden_2", "hidden", "spectral", 0.02),
        ("bias_2", "bias", "rms", 0.02),
    ]
    names = [layer.name for layer in optimizer.layers()]
    assert len(set(names)) == len(names)


def test_one_radius_per_layer() -> None:
    net = network(torch.float64)
    optimizer = Gluon([{"params": [net[0].weight, net[2].weight], "role": "hidden", "radius": [1.0, 4.0]}], lr=0.1,
                      orthogonalizer="svd")  # fmt: skip
    before = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
    backward(net, 0)
    optimizer.step()
    lengths = [layer.norm(b - layer.parameter).item() for layer, b in zip(optimizer.layers(), before, strict=True)]
    assert lengths == pytest.approx([0.1, 0.4], rel=1e-9)
    assert [layer.step_length for layer in optimizer.layers()] == pytest.approx([0.1, 0.4])


def test_layers_measure_conv_and_fused_weights_in_their_own_norm() -> None:
    conv = nn.Conv2d(4, 8, 3, bias=False).double()
    optimizer = Gluon([{"params": [conv.weight], "role": "hidden"}], lr=0.1, orthogonalizer="svd")
    conv.weight.grad = torch.randn_like(conv.weight)
    before = conv.weight.detach().clone()
    layer = optimizer.layers()[0]
    optimizer.step()
    step = before - conv.weight.detach()
    assert layer.norm(step).item() == pytest.approx(0.1, rel=1e-9)
    assert (conv.weight.grad * step).sum().item() == pytest.approx(
        0.1 * layer.dual_norm(conv.weight.grad).item(), rel=1e-9
    )
