"""Language models: recomputed activations, parts that train, kernels that run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.tasks import CausalLM
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
