"""The optimizer under the Trainer of transformers: what it routes, that it resumes exactly, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.trainer_optimizer import is_optimizer_factory

from lightning_gluon import Gluon
from lightning_gluon.tasks import OptimizerFactory
from tests.tasks._chat import TINY


def trainer(folder: Path, **options: Any) -> transformers.Trainer:
    torch.manual_seed(0)
    rows = [{"input_ids": torch.arange(i, i + 8), "labels": torch.arange(i, i + 8)} for i in range(32)]
    return transformers.Trainer(
        transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TINY)),
        transformers.TrainingArguments(
            str(folder), max_steps=4, save_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, seed=1
        ),
        train_dataset=rows,
        optimizer_cls_and_kwargs=(OptimizerFactory, {"method": "gluon", "lr": 0.02, **options}),
    )


def test_resume_is_exact(tmp_path: Path) -> None:
    assert is_optimizer_factory(OptimizerFactory)
    whole = trainer(tmp_path)
    whole.train()
    optimizer = whole.optimizer.optimizer  # accelerate wraps it
    assert isinstance(optimizer, Gluon)
    assert {group["role"] for group in optimizer.param_groups} == {"hidden", "embedding", "bias"}
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gluon-mvr1"}, r"taken once and at the weights, but 'gluon-mvr1' takes it elsewhere"),
        ({"method": "gluon-igt"}, r"taken once and at the weights, but 'gluon-igt' takes it elsewhere"),
        ({"schedule": "cosine"}, r"`schedule` to be left to the Trainer of transformers. Set `lr_scheduler_type`"),
        ({"lr": "auto"}, r"`lr` to be a number, such as 0.02, but got 'auto'"),
    ],
)
def test_refusals_come_before_the_first_step(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options).train()
