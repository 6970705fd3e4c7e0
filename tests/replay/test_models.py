"""Real architectures: with the weights standing still the reference gradient is the gradient, bit for bit."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gluon import configure_optimizers
from tests._two_point import Pairs, fit, gluon

VOCABULARY, LENGTH = 32, 12


class Task(pl.LightningModule):
    """A network and how its loss is computed, at learning rate 0."""

    def __init__(self, net: nn.Module, *, text: bool) -> None:
        super().__init__()
        self.net, self.text = net, text

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.text:
            loss = self.net(**batch).loss
        else:
            loss = nn.functional.cross_entropy(self.net(batch["x"]).float(), batch["y"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, "gluon-mvr1", lr=0.0)


def vit() -> Task:
    timm = pytest.importorskip("timm")
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5, drop_rate=0.2, proj_drop_rate=0.1,
        attn_drop_rate=0.1, drop_path_rate=0.3,
    )  # fmt: skip
    return Task(net, text=False)


def qwen2(*, checkpointing: bool = False) -> Task:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True, attention_dropout=0.2,
        use_cache=False,
    )  # fmt: skip
    net = transformers.Qwen2ForCausalLM(config)
    if checkpointing:
        net.gradient_checkpointing_enable()
    return Task(net, text=True)


def mamba() -> Task:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("mambapy")
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=24, state_size=4, num_hidden_layers=2, use_mambapy=True, use_cache=False
    )
    return Task(transformers.MambaForCausalLM(config), text=True)


MODELS = {"vit": vit, "qwen2": qwen2, "qwen2 checkpointed": lambda: qwen2(checkpointing=True), "mamba": mamba}


def batches(*, text: bool) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(5):
        if text:
            tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
            made.append({"input_ids": tokens, "labels": tokens})
        else:
            images = torch.randn(4, 3, 16, 16, generator=generator)
            made.append({"x": images, "y": torch.randint(5, (4,), generator=generator)})
    return DataLoader(made, batch_size=None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_reference_gradient_is_the_gradient(name: str, precision: str) -> None:
    model, pairs = MODELS[name](), Pairs()
    model.train()  # models of transformers start in eval mode, where nothing is dropped
    runner = fit(
        model, loader=batches(text=model.text), callbacks=[pairs], precision=precision, accumulate_grad_batches=2
    )
    assert len(pairs.steps) == 2  # of three windows, the last one partial, the first needs no second gradient
    assert all(len(step) == len(list(model.parameters())) for step in pairs.steps)
    assert pairs.unequal() == []
    assert gluon(runner).gradient_evaluations == 5


@pytest.mark.parametrize("name", ["vit", "qwen2"])
def test_the_models_are_random_enough_to_tell(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without winding the streams back, dropout alone makes the gradients differ."""
    monkeypatch.setattr("lightning_gluon.replay.snapshot.set_rng_state", lambda state: None)
    model, pairs = MODELS[name](), Pairs()
    model.train()
    fit(model, loader=batches(text=model.text), callbacks=[pairs])
    assert len(set(pairs.unequal())) > len(list(model.parameters())) // 2


class Compiled(Task):
    """Logs inside the graph: the silent second pass is a second graph."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.Dropout(0.3), nn.Linear(8, 5)), text=False)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_module_that_logs(backend: str) -> None:
    model, pairs = Compiled(), Pairs()
    runner = fit(torch.compile(model, backend=backend), loader=batches(text=False), callbacks=[pairs])
    assert len(pairs.steps) == 4
    assert pairs.unequal() == []
    assert runner.callback_metrics["gluon/gradient_evaluations"] == 9
