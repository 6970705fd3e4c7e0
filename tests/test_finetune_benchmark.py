"""The benchmark of fine-tuning: what it keeps, what a second call does, what it counts as right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import finetune, finetune_memory, finetune_tasks
from benchmarks.finetune_tasks import Problem, score, templates
from benchmarks.journal import Journal


class Toy(Problem):
    """A linear map; its builds are counted."""

    steps = 3
    builds = 0

    def build(self, tune: str) -> nn.Module:
        Toy.builds += 1
        return nn.Linear(4, 3)

    def batches(self, seed: int) -> Iterator[Any]:
        while True:
            yield torch.eye(4)

    def loss(self, module: Any, batch: Any) -> Tensor:
        return module(batch).square().mean()

    def measure(self, module: Any) -> dict[str, float]:
        return {"loss": module.weight.square().mean().item()}


def test_a_second_call_does_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(finetune.PROBLEMS, "encoder", Toy)
    Toy.builds = 0
    call = ["--task", "encoder", "--rows", "full gluon", "full adamw", "--output", str(tmp_path / "a.jsonl")]
    finetune.main([*call, "--rates", "0.01"])
    assert Toy.builds == 3  # one to measure before, two runs
    finetune.main([*call, "--rates", "0.01", "0.1", "--seeds", "1"])
    runs = Journal(tmp_path / "a.jsonl").of("run")
    assert [(run["row"], run["lr"], run["seed"]) for run in runs] == [
        ("full gluon", 0.01, 0),
        ("full adamw", 0.01, 0),
        ("full gluon", 0.1, 0),
        ("full adamw", 0.1, 0),
        ("full gluon", 0.1, 1),  # the rate with the lower loss on seed 0
        ("full adamw", 0.1, 1),
    ]
    assert all(len(run["train_loss"]) == 3 for run in runs)
    page = (tmp_path / "a.md").read_text()
    assert "| full gluon | " in page
    assert "0.1*" in page  # at the edge


def test_no_rate_without_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(finetune.PROBLEMS, "encoder", Toy)
    with pytest.raises(SystemExit, match="runs of seed 0 on file to take a rate from"):
        finetune.main(["--task", "encoder", "--rates-of", "chat", "--output", str(tmp_path / "a.jsonl")])
    with pytest.raises(SystemExit, match="Expected `--rows` out of"):
        finetune.main(["--task", "encoder", "--rows", "nothing"])


def test_an_answer_counts_if_all_of_its_tokens_are_right() -> None:
    class Next(nn.Module):
        """The most likely next token is the one after this one."""

        def forward(self, tokens: Tensor) -> Tensor:
            return 9 * torch.nn.functional.one_hot(tokens + 1, 8).float()

    labels = torch.tensor([[-100, -100, 3, 4], [-100, -100, 3, 5]])
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]), "labels": labels}
    found = score(Next(), [batch])
    assert found["accuracy"] == 3 / 4
    assert found["exact"] == 1 / 2


def test_templates_are_right_and_differ_by_seed() -> None:
    assert templates(0, 6) == templates(0, 6) != templates(1, 6)
    question, answer = finetune_tasks._sum(finetune_tasks.random.Random(0))
    first, _, second = question.removeprefix("What is ").rstrip("?").split()
    assert int(first) + int(second) == int(answer)


def test_a_batch_that_fits() -> None:
    found = {"step": 5e9, "fixed": 2e9, "sample": 3e9}
    assert finetune_memory.fitting(found, 14.4e9) == 4
    assert finetune_memory.fitting(found, 4e9) == 0
    names = [setting.name for setting in finetune_memory.SETTINGS]
    assert len(set(names)) == len(names)
    module = finetune_memory.build(finetune_memory.Setting("mamba", ("out_proj",)))
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
