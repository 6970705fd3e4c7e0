"""The second gradient at a rebuilt previous iterate, on the architectures that it is for, against the kept copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon

# Measured after five steps (ViT, Qwen2): step 5e-4 and 2e-4, step8 6e-4 and 6e-4; the copy is exact.
BOUNDS = {"copy": 0.0, "step": 1e-3, "step8": 1e-3}


def vit() -> tuple[nn.Module, list]:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, embed_dim=48, num_heads=3,
                              num_classes=10)  # fmt: skip
    batches = [(torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))) for _ in range(6)]
    return model, [lambda x=x, y=y: nn.functional.cross_entropy(model(x), y) for x, y in batches]


def qwen2() -> tuple[nn.Module, list]:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    batches = [torch.randint(0, 128, (4, 32)) for _ in range(6)]
    return model, [lambda ids=ids: model(input_ids=ids, labels=ids).loss for ids in batches]


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("build", [vit, qwen2])
def test_error_of_the_second_gradient(build: object, kind: str) -> None:
    torch.manual_seed(0)
    model, losses = build()  # type: ignore[operator]
    optimizer = Gluon(model, lr=0.02, method="limuon", rank=8, reference=kind)

    def gradient(loss: object) -> torch.Tensor:
        model.zero_grad()
        loss().backward()  # type: ignore[operator]
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    for loss in losses[:5]:
        previous = {p: p.detach().clone() for p in model.parameters()}
        optimizer.step(lambda loss=loss: gradient(loss))
    current = {p: p.detach().clone() for p in model.parameters()}
    with optimizer.at_reference():
        rebuilt = gradient(losses[5])
    assert all(torch.equal(p, current[p]) for p in model.parameters())
    with torch.no_grad():
        for p, value in previous.items():
            p.copy_(value)
    exact = gradient(losses[5])
    error = float((rebuilt - exact).norm() / exact.norm())
    assert error <= BOUNDS[kind]
    if kind != "copy":
        assert error > 0, error
