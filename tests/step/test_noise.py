"""Rounding noise takes no step, and nothing else is taken for it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from benchmarks.journal import Journal
from benchmarks.noise import PRECISIONS, RESULTS, table, totals
from lightning_gluon import Gluon, configure_optimizers
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.step.noise import NOISE_FLOOR, NoiseGuard
from lightning_gluon.step.plan import build_plan

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def train(net: nn.Module, loss: Callable[[], Tensor], precision: str, steps: int = 10) -> dict[str, Tensor]:
    """Train in a precision as Lightning does; return how far every parameter has moved."""
    dtype = DTYPES[precision]
    optimizer = Gluon(net, lr=0.05, noise_floor=NOISE_FLOOR[dtype])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=dtype == torch.float16)
    start = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found = loss()
        scaler.scale(found).backward()
        scaler.step(optimizer)
        scaler.update()
    return {name: parameter.detach() - start[name] for name, parameter in net.named_parameters()}


def length(moved: Tensor) -> float:
    return moved.square().mean().sqrt().item()


# ------------------------------------------------------------------ true zeros


class Attention(nn.Module):
    """Every way to store a key bias that the softmax cancels, and a convolution in front of batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.qkv = nn.Linear(16, 48)
        self.several = nn.MultiheadAttention(16, 2, batch_first=True)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.softmax(self.query(x) @ self.key(x).mT / 4, dim=-1) @ self.value(x)
        q, k, v = self.qkv(x + y).chunk(3, dim=-1)
        y = y + torch.softmax(q @ k.mT / 4, dim=-1) @ v
        y = layer_norm(x + y, (16,))
        y = y + self.several(y, y, y, need_weights=False)[0]
        return self.head(torch.relu(self.norm(self.conv(y.mT))).mean(-1))


@pytest.mark.parametrize("precision", DTYPES)
def test_biases_whose_true_gradient_is_zero_stay(precision: str) -> None:
    torch.manual_seed(0)
    net = Attention()
    x, y = torch.randn(32, 10, 16), torch.randint(4, (32,))
    moved = train(net, lambda: cross_entropy(net(x), y), precision)
    assert net.key.bias.grad.abs().max() > 0, "the test needs noise"
    assert net.conv.bias.grad.abs().max() > 0, "the test needs noise"
    for name in ("key.bias", "conv.bias"):
        assert not moved[name].any(), name
    for name in ("qkv.bias", "several.in_proj_bias"):
        query, key, value = moved[name].chunk(3)
        assert not key.any(), name
        assert query.abs().min() > 0 and value.abs().min() > 0, name
    for name in ("query.bias", "value.bias", "several.out_proj.bias", "norm.bias", "norm.weight", "head.bias"):
        assert length(moved[name]) > 1e-3, name


def test_the_other_parts_of_a_fused_bias_make_a_whole_step() -> None:
    """Where a part is silent the LMO is that of the others: the step has the length of the vector's radius."""
    net = nn.Module()
    net.qkv = nn.Linear(4, 12)
    optimizer = Gluon(net, lr=0.1)
    before = net.qkv.bias.detach().clone()
    net.qkv.weight.grad, net.qkv.bias.grad = torch.randn(12, 4), torch.randn(12)
    net.qkv.bias.grad[4:8] *= 1e-7
    optimizer.step()
    moved = net.qkv.bias.detach() - before
    radius = next(layer.step_length for layer in optimizer.layers() if layer.name == "qkv.bias")
    assert not moved[4:8].any()
    assert length(moved) == pytest.approx(radius, rel=1e-5)


def test_every_head_of_a_fused_weight_judges_its_own_part() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3, num_classes=5)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape)
    bias = net.blocks[0].attn.qkv.bias
    bias.grad[32:40] *= 1e-7  # the second head of the keys
    optimizer = configure_optimizers(net, "gluon", lr=0.1, per_head=True)
    before = bias.detach().clone()
    optimizer.step()
    heads = (bias.detach() - before).reshape(9, 8)
    assert not heads[4].any()
    assert all(head.abs().min() > 0 for number, head in enumerate(heads) if number != 4)


# ------------------------------------------------------------------ real gradients


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_mamba_decays_move_as_their_neighbour_does(precision: str) -> None:
    """`A_log` beside `D`, which sums over everything: its gradient is small, and a gradient."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=16)
    net = transformers.MambaForCausalLM(config)
    ids = torch.randint(50, (4, 24))
    moved = train(net, lambda: net(input_ids=ids, labels=ids).loss, precision, steps=5)
    for index in range(2):
        mixer = f"backbone.layers.{index}.mixer"
        assert length(moved[f"{mixer}.A_log"]) > 0.5 * length(moved[f"{mixer}.D"]) > 0


class Positions(nn.Module):
    """A class token beside a table of 4096 positions, whose rows each see one patch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 16)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 4096, 16))
        self.scale = nn.Parameter(torch.ones(()))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.cls_token.expand(len(x), -1, -1)
        x = self.norm(torch.cat([first, self.patch(x) + self.pos_embed], dim=1)).tanh()
        return self.head(self.scale * x[:, 0] + x[:, 1:].mean(1))


@pytest.mark.parametrize("precision", DTYPES)
def test_long_position_tables_move_as_the_class_token_does(precision: str) -> None:
    torch.manual_seed(0)
    net = Positions()
    x, y = torch.randn(2, 4096, 4), torch.randint(4, (2,))
    moved = train(net, lambda: cross_entropy(net(x), y), precision, steps=3)
    rows = net.pos_embed.grad.square().mean().sqrt() / net.cls_token.grad.square().mean().sqrt()
    assert rows < 2**-9, "the test needs a table whose gradient is small"
    assert length(moved["pos_embed"]) > 0.5 * length(moved["cls_token"]) > 0
    assert moved["scale"] != 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_cait_position_embeddings_move_as_the_class_token_does(precision: str) -> None:
    """Its layer scale of 1e-5 makes gradients that are small without any rounding."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("cait_xxs24_224", img_size=32, depth=2, num_classes=4)
    x, y = torch.randn(4, 3, 32, 32), torch.randint(4, (4,))
    moved = train(net, lambda: cross_entropy(net(x), y), precision, steps=3)
    assert length(moved["pos_embed"]) > 0.5 * length(moved["cls_token"]) > 0
    for name in ("blocks.0.gamma_1", "blocks.1.gamma_2"):
        assert length(moved[name]) > 0, name


# ------------------------------------------------------------------ a silent bias stays, whatever its momentum


def layer_with(estimator: str, norm: str, **options: Any) -> tuple[nn.Linear, Gluon]:
    torch.manual_seed(0)
    layer = nn.Linear(4, 6)
    groups = [
        {"params": [("weight", layer.weight)], "role": "hidden", "estimator": estimator},
        {"params": [("bias", layer.bias)], "role": "bias", "norm": norm, "estimator": estimator},
    ]
    optimizer = Gluon(groups, lr=0.02, total_steps=8, **options)
    optimizer.two_point = "callback"
    return layer, optimizer


def feed(layer: nn.Linear, optimizer: Gluon, step: int, bias: float) -> None:
    """Take a step on gradients of which the bias's is as large as said."""
    random = torch.Generator().manual_seed(step)
    gradients = [torch.randn(parameter.shape, generator=random) for parameter in (layer.weight, layer.bias)]
    layer.weight.grad, layer.bias.grad = gradients[0], bias * gradients[1]
    if optimizer.reference_point == "previous" and optimizer.needs_reference:
        optimizer.reference_gradients = {p: 0.9 * p.grad for p in (layer.weight, layer.bias)}
    optimizer.step()


# AdamW has no oracle. The step of `averaged` begins ahead, along the average of former steps, which hears no gradient.
STAYING = [name for name in ESTIMATORS if name not in ("adamw", "averaged")]


@pytest.mark.parametrize("norm", ["rms", "max", "euclidean"])
@pytest.mark.parametrize("estimator", STAYING)
def test_a_silent_bias_stays_whatever_its_momentum(estimator: str, norm: str) -> None:
    layer, optimizer = layer_with(estimator, norm)
    start = layer.bias.detach().clone()
    feed(layer, optimizer, 0, bias=1.0)
    heard = layer.bias.detach().clone()
    assert not torch.equal(heard, start)
    for step in (1, 2, 3):
        feed(layer, optimizer, step, bias=1e-7)
        assert torch.equal(layer.bias, heard), step
    feed(layer, optimizer, 4, bias=1.0)
    assert not torch.equal(layer.bias, heard)


@pytest.mark.parametrize("estimator", ["ema", "mvr2", "dual_ema"])
def test_the_momentum_of_a_silent_bias_goes_on(estimator: str) -> None:
    guarded, free = layer_with(estimator, "rms"), layer_with(estimator, "rms", noise_floor=0.0)
    for step, size in enumerate((1.0, 1e-7, 1e-7, 1.0)):
        for layer, optimizer in (guarded, free):
            feed(layer, optimizer, step, bias=size)
    assert not torch.equal(guarded[0].bias, free[0].bias)
    assert torch.equal(guarded[0].weight, free[0].weight)
    for mine, other in zip(guarded[1].state.values(), free[1].state.values(), strict=True):
        for name in ESTIMATORS[estimator].buffers:
            assert torch.equal(mine[name], other[name]), name


def test_weight_decay_acts_on_a_silent_bias() -> None:
    layer, optimizer = layer_with("ema", "rms", weight_decay=0.5)
    feed(layer, optimizer, 0, bias=1.0)
    heard = layer.bias.detach().clone()
    feed(layer, optimizer, 1, bias=1e-7)
    torch.testing.assert_close(layer.bias.detach(), heard * (1 - 0.02 * 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ["ema", "nesterov", "mvr1", "mars", "dual_ema"])
def test_where_nothing_is_silent_the_guard_changes_no_bit(estimator: str) -> None:
    guarded, free = layer_with(estimator, "rms"), layer_with(estimator, "rms", noise_floor=0.0)
    for step in range(4):
        for layer, optimizer in (guarded, free):
            feed(layer, optimizer, step, bias=0.1)
    assert torch.equal(guarded[0].bias, free[0].bias)
    assert torch.equal(guarded[0].weight, free[0].weight)


def test_an_expert_without_tokens_goes_on_along_its_momentum() -> None:
    """Both gradients are exactly zero: no rounding, and torch's optimizers go on as well."""
    guarded, free = layer_with("ema", "rms"), layer_with("ema", "rms", noise_floor=0.0)
    for layer, optimizer in (guarded, free):
        feed(layer, optimizer, 0, bias=1.0)
        before = layer.bias.detach().clone()
        layer.weight.grad, layer.bias.grad = torch.zeros(6, 4), torch.zeros(6)
        optimizer.step()
        assert not torch.equal(layer.bias, before)
    assert torch.equal(guarded[0].bias, free[0].bias)


def test_sums_that_cancel_exactly_are_silent_too() -> None:
    layer, optimizer = layer_with("ema", "rms")
    feed(layer, optimizer, 0, bias=1.0)
    before = layer.bias.detach().clone()
    feed(layer, optimizer, 1, bias=0.0)
    assert torch.equal(layer.bias, before)


# ------------------------------------------------------------------ who is judged by whom


def weights_of_biases(net: nn.Module, **options: Any) -> dict[str, str]:
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    guard = NoiseGuard(build_plan(Gluon(net, lr=0.02, **options).param_groups))
    return {layer.bias.name: layer.weight.name for layer in guard.affine}


def test_every_bias_is_judged_by_the_weight_that_shares_its_sums() -> None:
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 6),
            "conv": nn.ConvTranspose2d(4, 6, 3, groups=2),
            "norm": nn.LayerNorm(6),
            "attention": nn.MultiheadAttention(8, 2),
            "lstm": nn.LSTM(4, 6),
            "new": nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
        }
    )
    assert weights_of_biases(net) == {
        "linear.bias": "linear.weight",
        "conv.bias": "conv.weight",
        "norm.bias": "norm.weight",
        "attention.in_proj_bias": "attention.in_proj_weight",
        "attention.out_proj.bias": "attention.out_proj.weight",
        "lstm.bias_ih_l0": "lstm.weight_ih_l0",
        "lstm.bias_hh_l0": "lstm.weight_hh_l0",
        "new.bias": "new.parametrizations.weight.original1",
    }


def test_without_a_gradient_of_the_weight_a_bias_is_not_judged() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    net[0].weight.requires_grad_(False)
    assert weights_of_biases(net) == {"1.bias": "1.weight"}


def test_scales_and_arrays_are_judged_by_nobody() -> None:
    net = nn.Module()
    net.layer, net.temperature = nn.Linear(4, 4), nn.Parameter(torch.ones(()))
    net.q_bias, net.relative_position_bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4, 3, 3))
    assert weights_of_biases(net) == {"layer.bias": "layer.weight"}


@pytest.mark.parametrize("layout", ["GPT2", "Bloom"])
def test_parts_of_a_bias_lie_as_the_rows_of_its_weight(layout: str) -> None:
    """Stored (in, out), or interleaved head by head: entry j of a part is the bias of row j of its map."""
    transformers = pytest.importorskip("transformers")
    if layout == "GPT2":
        config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=8)
        net, name = transformers.GPT2LMHeadModel(config), "transformer.h.0.attn.c_attn.bias"
    else:
        config = transformers.BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2)
        net, name = transformers.BloomForCausalLM(config), "transformer.h.0.self_attention.query_key_value.bias"
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    guard = NoiseGuard(build_plan(Gluon(net, lr=0.02).param_groups))
    affine = next(layer for layer in guard.affine if layer.bias.name == name)
    numbers = torch.arange(24.0)
    rows = numbers.expand(8, 24) if layout == "GPT2" else numbers.unsqueeze(1).expand(24, 8)
    parts, maps = affine.parts_of_bias(numbers), affine.parts_of_weight(rows.contiguous())
    assert len(parts) == len(maps) == 3
    for part, weight in zip(parts, maps, strict=True):
        assert torch.equal(part.flatten(), weight.reshape(-1, 8)[:, 0])
    assert sorted(torch.cat([part.flatten() for part in parts]).tolist()) == numbers.tolist()


def test_a_norm_that_overflows_silences_nothing() -> None:
    layer, optimizer = layer_with("ema", "rms")
    feed(layer, optimizer, 0, bias=1.0)
    guard = NoiseGuard(build_plan(optimizer.param_groups))
    gradients = [layer.weight.grad, layer.bias.grad]
    for norms in ([torch.inf, 1.0], [torch.nan, 1.0], [0.0, 0.0]):
        _, heard = guard.signal(gradients, torch.tensor(norms))
        assert heard.all(), norms


def test_the_floor_may_change_between_steps() -> None:
    layer, optimizer = layer_with("ema", "rms")
    feed(layer, optimizer, 0, bias=1.0)
    for floor, moves in ((0.5, False), (0.0, True), (None, True), (0.5, False)):
        before = layer.bias.detach().clone()
        optimizer.param_groups[1]["noise_floor"] = floor
        feed(layer, optimizer, 1, bias=0.1)
        assert torch.equal(layer.bias, before) != moves, floor


def test_judging_waits_for_no_device() -> None:
    """Tensors without data would raise if anything were read from them."""
    net = copy.deepcopy(Attention()).to("meta")
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    chunks = build_plan(Gluon(net, lr=0.02).param_groups)
    gradients = [gradient for chunk in chunks for gradient in chunk.gradients]
    signal = NoiseGuard(chunks).signal(gradients, torch.empty(len(gradients), device="meta"))
    judged = [entries for entries in signal if entries is not None]
    assert len(judged) == 9
    assert all(entries.ndim == 1 and entries.is_meta for entries in judged)


# ------------------------------------------------------------------ what is said of it


def test_the_floors_that_were_measured_are_those_in_use() -> None:
    assert {precision.dtype: 2.0**-precision.floor for precision in PRECISIONS} == {
        dtype: NOISE_FLOOR[dtype] for dtype in DTYPES.values()
    }


@pytest.mark.parametrize("criterion", ["weight", "module"])
def test_the_primer_has_the_tables_of_the_results(criterion: str) -> None:
    primer = (Path(__file__).parents[2] / "docs" / "primers" / "noise.md").read_text()
    found = re.search(rf"<!-- {criterion} -->\n\n(.*?)\n\n", primer, re.DOTALL)
    assert found is not None
    assert found[1] == table(totals(Journal(RESULTS)), criterion)


def test_the_primer_counts_the_architectures() -> None:
    primer = (Path(__file__).parents[2] / "docs" / "primers" / "noise.md").read_text()
    count = len({row["architecture"] for row in totals(Journal(RESULTS))})
    assert f"Measured on {count} small architectures" in primer
    assert count >= 40
