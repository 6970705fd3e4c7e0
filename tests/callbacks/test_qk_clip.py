"""QK-clip on tiny models: logits that are too large shrink by their factor, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_gluon import configure_optimizers
from lightning_gluon.callbacks import QKClip
from lightning_gluon.callbacks.attention import AttentionHeads, LogitMeter, find_attention, hooks_of
from tests._two_point import fit

SMALL = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
TOKENS = torch.tensor([[1, 5, 3, 7, 2, 9], [4, 4, 8, 0, 10, 6]])


def of_transformers(kind: str, implementation: str = "eager", **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SMALL, "attn_implementation": implementation, **options})
    return getattr(transformers, f"{kind}Model")(config)


def latent(rank: int | None) -> nn.Module:
    sizes: dict[str, Any] = {"qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4, "kv_lora_rank": 6}
    return of_transformers(
        "DeepseekV3", first_k_dense_replace=1, n_routed_experts=4, num_key_value_heads=4, q_lora_rank=rank, **sizes
    )


def of_timm(*, fused: bool = False) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    net = VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=1, num_heads=4)
    net.blocks[0].attn.fused_attn = fused
    return net


# model -> how it is built, heads, key heads
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "llama, grouped": (lambda: of_transformers("Llama", num_key_value_heads=2), 4, 2),
    "llama, one key": (lambda: of_transformers("Llama", num_key_value_heads=1), 4, 1),
    "qwen2, biases": (lambda: of_transformers("Qwen2", num_key_value_heads=4), 4, 4),
    "deepseek": (lambda: latent(None), 4, 4),
    "deepseek, latent queries": (lambda: latent(8), 4, 4),
    "neox, per head": (lambda: of_transformers("GPTNeoX"), 4, 4),
    "phi3, fused and grouped": (lambda: of_transformers("Phi3", num_key_value_heads=2, pad_token_id=0), 4, 2),
    "gpt2, transposed": (lambda: of_transformers("GPT2", n_head=4, n_embd=16, n_layer=1), 4, 4),
    "bert": (lambda: of_transformers("Bert"), 4, 4),
    "timm": (of_timm, 4, 4),
}


def build(name: str) -> nn.Module:
    """Return a model in fp64 with biases that count."""
    net = MODELS[name][0]().double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) * (0.5 if p.ndim > 1 else 0.2))
    return net


def batch_of(net: nn.Module) -> Tensor:
    images = hasattr(net, "patch_embed")
    return torch.linspace(-1, 1, 128, dtype=torch.float64).view(2, 1, 8, 8) if images else TOKENS


class Recorder(TorchFunctionMode):
    """Record what goes into a softmax over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") == "softmax" and args[0].ndim == 4:
            self.seen.append(args[0].detach().clone())
        return func(*args, **(kwargs or {}))


def logits_of(net: nn.Module) -> Tensor:
    with torch.no_grad(), Recorder() as recorder:
        net.eval()(batch_of(net))
    return recorder.seen[0]


def metered(net: Any, attention: AttentionHeads) -> Tensor:
    meter = LogitMeter(attention.heads, lambda module: True)
    handles = list(hooks_of([attention], [meter]))
    with torch.no_grad():
        net(batch_of(net))
    for handle in handles:
        handle.remove()
    assert meter.top is not None and not meter.entered
    return meter.top


@pytest.mark.parametrize("name", MODELS)
def test_logits_shrink_by_their_factor_and_nothing_else_changes(name: str) -> None:
    net = build(name)
    (attention,) = find_attention(net)
    assert (attention.heads, len(attention.key.rows)) == MODELS[name][1:]
    before = logits_of(net)
    tops = before.amax((0, 2, 3))
    assert torch.equal(metered(net, attention), tops)
    order = tops.sort().values
    threshold = (order[1] + order[2]) / 2  # two heads are above it, two are not
    factors = torch.where(tops > threshold, threshold / tops, torch.ones_like(tops))
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    attention.scale_(factors)
    after = logits_of(net)
    attends = before > -1e30
    expected = factors.view(1, -1, 1, 1) * before
    torch.testing.assert_close(after[attends], expected[attends], rtol=0, atol=1e-10)
    assert after.amax((0, 2, 3)).max() <= threshold * (1 + 1e-12)
    kept = tops <= threshold
    assert torch.equal(after[:, kept][attends[:, kept]], before[:, kept][attends[:, kept]])
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, weights[key])}
    layers = {attention.query.layer, attention.key.layer}
    names = {path for path, module in net.named_modules() if module in layers}
    assert changed and {key.rpartition(".")[0] for key in changed} <= names


@pytest.mark.parametrize("name", MODELS)
def test_factors_of_one_change_nothing(name: str) -> None:
    net = build(name)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    (attention,) = find_attention(net)
    attention.scale_(torch.ones(attention.heads))
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_one_head_per_key_takes_the_root_on_both_sides() -> None:
    net = build("bert")
    (attention,) = find_attention(net)
    layers: list[Any] = [attention.query.layer, attention.key.layer]
    before = [layer.weight.detach().clone() for layer in layers]
    attention.scale_(torch.tensor([0.25, 1.0, 1.0, 1.0], dtype=torch.float64))
    for layer, old in zip(layers, before, strict=True):
        torch.testing.assert_close(layer.weight[:4].detach(), 0.5 * old[:4], rtol=0, atol=1e-15)
        assert torch.equal(layer.weight[4:], old[4:])


@pytest.mark.parametrize(
    "pair",
    [
        (lambda i: of_transformers("Llama", i, num_key_value_heads=2), ("eager", "sdpa")),
        (lambda i: of_transformers("Bert", i), ("eager", "sdpa")),
        (lambda i: of_timm(fused=i), (False, True)),
    ],
    ids=["llama", "bert", "timm"],
)
def test_fused_kernels_show_the_same_logits(pair: tuple[Callable[..., nn.Module], tuple]) -> None:
    plain, fused = (pair[0](implementation).eval() for implementation in pair[1])
    fused.load_state_dict(plain.state_dict())
    plain, fused = plain.double(), fused.double()
    tops = [metered(net, find_attention(net)[0]) for net in (plain, fused)]
    torch.testing.assert_close(*tops, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- in a Trainer


class Classifier(pl.LightningModule):
    net: Any

    def __init__(self, net: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = of_timm() if net is None else net
        self.options = {"method": "gluon", "lr": 0.02, **options}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, **self.options)


def images(batches: int = 4) -> torch.utils.data.DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4 * batches, 1, 8, 8, generator=generator)
    labels = torch.arange(4 * batches) % 3
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=4)


def trained(callbacks: list[pl.Callback], tmp_path: Path, **options: Any) -> Classifier:
    accumulate = options.pop("accumulate", 1)
    model = Classifier(**options)
    fit(model, loader=images(), callbacks=callbacks, accumulate_grad_batches=accumulate, default_root_dir=tmp_path)
    return model


@pytest.mark.parametrize("method", ["gluon", "muon", "gluon-mvr1", "adamw"])
def test_below_the_threshold_the_run_is_the_run(method: str, tmp_path: Path) -> None:
    plain, clipped = trained([], tmp_path, method=method), trained([QKClip(1e6)], tmp_path, method=method)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), clipped.parameters(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in clipped.modules())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_scales_by_the_largest_logit_of_its_batches(accumulate: int, tmp_path: Path) -> None:
    threshold = 1e-3  # every head is above it
    with Recorder() as recorder:
        model = trained([QKClip(threshold)], tmp_path, lr=0.0, accumulate=accumulate)
    tops = [logits.amax((0, 2, 3)) for logits in recorder.seen]
    expected = Classifier().net.blocks[0].attn.qkv.weight.detach().clone()
    for first in range(0, 4, accumulate):
        top = torch.stack(tops[first : first + accumulate]).amax(0)
        factors = torch.where(top > threshold, threshold / top, 1.0).sqrt().repeat_interleave(4)
        expected[:32] *= factors.repeat(2).unsqueeze(1)
    torch.testing.assert_close(model.net.blocks[0].attn.qkv.weight.detach(), expected, rtol=1e-5, atol=1e-8)
    assert not torch.equal(expected[:32], Classifier().net.blocks[0].attn.qkv.weight[:32])
    assert torch.equal(model.net.blocks[0].mlp.fc1.weight, Classifier().net.blocks[0].mlp.fc1.weight)


def test_the_second_gradient_is_not_measured(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counted(QKClip):
        def _largest(self, device: torch.device) -> Tensor:
            calls.extend(meter.calls for meter in self._meters)
            return super()._largest(device)

    trained([Counted(1e6)], tmp_path, method="gluon-mvr1")
    assert calls == [1, 1, 1, 1]


def test_the_largest_logit_is_logged(tmp_path: Path) -> None:
    model = Classifier(lr=0.0)
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(model, loader=images(), callbacks=[QKClip(1e6)], logger=logger, log_every_n_steps=1)
    assert 0 < model.trainer.callback_metrics["qk_clip/largest_logit"] < 1e6


def refused(net: nn.Module | None = None, **options: Any) -> None:
    fit(Classifier(net, **options), loader=images(), callbacks=[QKClip()])


def test_errors() -> None:
    with pytest.raises(ValueError, match="0 < threshold < inf, but got 0"):
        QKClip(0)
    with pytest.raises(ValueError, match=r"Expected attention modules whose heads are known, .* but got none"):
        refused(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(ValueError, match=r"but this one rebuilds the point 'previous' .* Set `reference='copy'`"):
        refused(method="gluon-mvr1", reference="step8")
    with pytest.raises(ValueError, match="Expected gradients at the weights, but got the point 'transported'"):
        refused(method="gluon-igt")
    with pytest.raises(ValueError, match=r"no norm between projection and logits of .* but got `q_norm`"):
        find_attention(of_transformers("Qwen3", head_dim=4, num_key_value_heads=2))
    pruned = of_timm()
    torch.nn.utils.parametrizations.spectral_norm(pruned.blocks[0].attn.qkv)
    with pytest.raises(ValueError, match="to own their weights, but got a ParametrizedLinear"):
        find_attention(pruned)


def test_an_unknown_kernel_is_an_error() -> None:
    model = Classifier()
    model.net.blocks[0].attn.forward = lambda x, **options: x  # a kernel that shows nothing
    with pytest.raises(RuntimeError, match=r"The logits of 'net.blocks.0.attn', a Attention, could not be seen"):
        fit(model, loader=images(), callbacks=[QKClip()])
