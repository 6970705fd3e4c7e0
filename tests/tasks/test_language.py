"""Language models: recomputed activations, parts that train, kernels that run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.tasks import CausalLM
from lightning_gluon.tasks.checkpoints import load_task
from lightning_gluon.tasks.hub import _choose_scan
from tests.tasks._chat import TINY

MAMBA = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
LORA = {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.5}


def train(folder: Path, method: str, name: str, config: dict[str, Any], **options: Any) -> list[torch.Tensor]:
    """Return the weights after three steps."""
    torch.manual_seed(0)
    model = CausalLM(name, config, **options)
    tokens = torch.randint(0, 300, (6, 33), generator=torch.Generator().manual_seed(1))
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[GluonOptimizer(method, lr=0.02)],
        **quiet,
    )
    trainer.fit(model, torch.utils.data.DataLoader(tokens, batch_size=2))
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_recomputed_activations_change_no_step(tmp_path: Path, method: str, lora: dict[str, Any] | None) -> None:
    """Also with a second gradient and dropout, whose masks have to come again."""
    config = {**TINY, "attention_dropout": 0.3}
    kept, recomputed = (
        train(tmp_path, method, "qwen2", config, lora=lora, gradient_checkpointing=on) for on in (False, True)
    )
    for one, other in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_recomputed_activations_change_no_step_of_a_mamba(tmp_path: Path, method: str) -> None:
    kept, recomputed = (train(tmp_path, method, "mamba", MAMBA, gradient_checkpointing=on) for on in (False, True))
    for one, other in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(one, other)


def test_quantised_weights_below_adapters(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    wide = {**TINY, "hidden_size": 64, "intermediate_size": 128}  # blocks of 64 weights share a scale
    CausalLM("qwen2", wide).net.save_pretrained(tmp_path / "base")
    model = CausalLM(str(tmp_path / "base"), pretrained=True, quantization="nf4", lora=LORA)
    Trainer(
        max_steps=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[GluonOptimizer("gluon", lr=0.02), ModelCheckpoint(tmp_path, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, torch.utils.data.DataLoader(torch.randint(0, 96, (4, 17)), batch_size=2))
    frozen = model.net.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert frozen.dtype is torch.uint8
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all("lora_" in key for key in checkpoint["state_dict"])
    loaded, _ = load_task(str(tmp_path / "last.ckpt"))
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded.eval()(tokens), model.eval()(tokens))
    with pytest.raises(ValueError, match="base in floating point with `merge`, but this one is quantised"):
        model.export(tmp_path / "merged", merge=True, notes=checkpoint["task"], tokenizer=None)


def test_mistakes_about_quantisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`quantization` to be one of None, nf4, int8, but got 'fp4'"):
        CausalLM("qwen2", TINY, quantization="fp4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adapters on pretrained weights with quantization='nf4', since quantised"):
        CausalLM("qwen2", TINY, quantization="nf4", lora=LORA)
    CausalLM("qwen2", TINY).net.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"`bitsandbytes` to be installed, but it is not. Run: pip install"):
        CausalLM(str(tmp_path), pretrained=True, quantization="nf4", lora=LORA)


def test_parts_of_a_mamba(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CausalLM("mamba", MAMBA, targets=["out_proj"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [f"net.backbone.layers.{layer}.mixer.out_proj.weight" for layer in range(2)]
    after = train(tmp_path, "gluon", "mamba", MAMBA, targets=["out_proj"])
    moved = [not torch.equal(one, other) for one, other in zip(model.parameters(), after, strict=True)]
    assert moved == [parameter.requires_grad for parameter in model.parameters()]


def test_the_slow_path_of_mamba_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = SimpleNamespace(use_mambapy=True)
    with pytest.warns(UserWarning, match=r"Mamba runs token by token, which is slow. Install mambapy, or .*mamba-ssm"):
        _choose_scan(config)
    assert not config.use_mambapy


@pytest.mark.parametrize("missing", ["mamba_ssm", "causal_conv1d", None])
def test_the_kernels_of_mamba_are_said(
    missing: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    config = SimpleNamespace(use_mambapy=False)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.addHandler(caplog.handler)
        _choose_scan(config)
        logger.removeHandler(caplog.handler)
    assert config.use_mambapy == (missing is not None)
    assert ("parallel scan of mambapy" if missing else "kernels of mamba-ssm and causal-conv1d") in caplog.text
