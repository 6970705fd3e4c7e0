"""The benchmarks whose results depend on what they keep: what is in the file, what a second call does, what fails."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import compare, monitor_overhead, real_sizes, small_tasks


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tokens in one folder for all tests, and undo that the commands silence Lightning."""
    monkeypatch.setenv("LIGHTNING_GLUON_CACHE", str(tmp_path_factory.getbasetemp() / "tokens"))
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


# ---------------------------------------------------------------------------------------------------- real sizes


@pytest.mark.parametrize(("model", "shape"), [("qwen2_5", (16, 1024)), ("mamba", (64, 256))])
def test_real_sizes_take_the_papers_batches(model: str, shape: tuple[int, int]) -> None:
    config = real_sizes.configuration(model, "limuon-r16", tiny=False)
    data = config["data"]["init_args"]
    assert (data["batch_size"], data["seq_len"], data["source"]) == (*shape, "python")
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["optimizer"] == {
        "schedule": "cosine", "warmup": 0.05, "method": "limuon", "lr": 0.01, "momentum": 0.95, "rank": 16
    }  # fmt: skip
    assert data["vocab_size"] <= config["model"]["init_args"]["config"]["vocab_size"]


def test_real_sizes_at_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "real.json"
    command = ["--tiny", "--steps", "3", "--models", "mamba", "vit", "--output", str(file)]
    real_sizes.main([*command, "--methods", "gluon", "limuon-r8"])
    report = json.loads(file.read_text())
    assert report["environment"]["torch"] == torch.__version__
    assert [(run["model"], run["method"]) for run in report["runs"]] == [
        ("mamba", "gluon"), ("mamba", "limuon-r8"), ("vit", "gluon"), ("vit", "limuon-r8")
    ]  # fmt: skip
    for run in report["runs"]:
        assert run["failure"] is None
        assert run["steps"] == len(run["train_loss"]) == 3
        assert run["gradient_evaluations"] == (5 if run["method"] == "limuon-r8" else 3)
        assert math.isfinite(run["val_loss"])
        items = 64 if run["model"] == "vit" else 8 * 64
        assert run["items_per_second"] == pytest.approx(items / run["seconds_per_step"])
        assert run["peak_bytes"] > run["state_bytes"] >= 4 * run["parameters"] > 0
    assert file.with_suffix(".png").stat().st_size > 10_000

    def fail(section: dict[str, Any]) -> Any:
        if section["class_path"].endswith("Data"):
            return made(section)
        raise torch.OutOfMemoryError("no room")

    made = real_sizes.built
    monkeypatch.setattr(real_sizes, "built", fail)
    real_sizes.main([*command, "--methods", "gluon", "adamw"])
    runs = json.loads(file.read_text())["runs"]
    assert runs[:4] == report["runs"]  # kept, not repeated
    assert [(run["method"], run["failure"]) for run in runs[4:]] == [("adamw", "OutOfMemoryError: no room")] * 2


def test_real_sizes_do_not_mix_or_run_without_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="a CUDA device for the real sizes"):
        real_sizes.main(["--output", str(tmp_path / "x.json")])
    (tmp_path / "x.json").write_text(json.dumps({"header": {"steps": 7, "tiny": True}, "runs": []}))
    with pytest.raises(SystemExit, match=r"holds runs with .*7"):
        real_sizes.main(["--tiny", "--steps", "3", "--output", str(tmp_path / "x.json")])


# ---------------------------------------------------------------------------------------------------- comparison


def test_compare_at_equal_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(compare, "WIDEN", 1)
    file = tmp_path / "digits.json"
    command = ["--task", "digits", "--evaluations", "6", "--seeds", "1", "2", "--factors", "1", "--output", str(file)]
    compare.main([*command, "--methods", "gluon-mvr1", "muon"])
    report = json.loads(file.read_text())
    two, muon = report["rows"]
    assert (two["steps"], two["evaluations"], two["companion sweep"]) == (3, 5, None)  # the first step needs only one
    assert (muon["steps"], muon["evaluations"]) == (6, 6)
    assert len(muon["sweep"]) == len(muon["companion sweep"]) == 2  # widened once
    assert set(muon["companion sweep"]) < {0.001, 0.002, 0.004}  # around AdamW's own rate
    best = [run for run in report["runs"] if run["method"] == "muon" and run["seed"] in (1, 2)]
    assert {(run["lr"], run["companion"]) for run in best} == {(muon["sweep"][0], muon["companion sweep"][0])}
    losses = [run["metrics"]["test/loss"] for run in best]
    assert muon["test/loss"][0] == pytest.approx(sum(losses) / 2)
    swept = [run for run in report["runs"] if run["seed"] == 0 and run["method"] == "gluon-mvr1"]
    assert two["sweep"][0] == min(swept, key=lambda run: run["metrics"]["val/loss"])["lr"]
    assert file.with_suffix(".md").read_text().count("| muon |") == 1
    assert file.with_suffix(".png").exists()

    monkeypatch.setattr(compare, "fingerprint", lambda *_: "others")
    with pytest.raises(SystemExit, match="holds runs on other data"):
        compare.main([*command, "--methods", "gluon"])
    monkeypatch.setattr(compare, "train", lambda *_: pytest.fail("trained twice"))
    compare.main([*command, "--methods", "gluon-mvr1", "muon"])
    assert json.loads(file.read_text()) == report
    with pytest.raises(SystemExit, match="holds another comparison"):
        compare.main(["--task", "text", "--output", str(file)])
    with pytest.raises(SystemExit, match=r"`--methods` out of adamw, .* got muom"):
        compare.main(["--methods", "muom", "--output", str(file)])


def test_a_diverged_seed_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def train(task: str, path: str | None, name: str, lr: float, companion: float | None, seed: int, evaluations: int):
        loss = math.inf if seed == 2 else lr + seed
        metrics = {"val/loss": abs(lr - 0.02), "test/loss": loss}
        run = {"method": name, "lr": lr, "companion": companion, "seed": seed, "steps": 1, "evaluations": 1}
        return {**run, "seconds": 0, "metrics": metrics, "curve": [], "failure": "not finite" if seed == 2 else None}

    monkeypatch.setattr(compare, "train", train)
    file = tmp_path / "digits.json"
    compare.main(["--task", "digits", "--methods", "gluon", "--seeds", "1", "2", "--output", str(file)])
    assert "| gluon | inf ± nan | nan ± nan | 0.02 [0.01, 0.02, 0.04] |" in file.with_suffix(".md").read_text()


def test_the_first_calls_are_not_the_monitors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[bool, int]] = []

    def seconds(method: str, given: Any, monitored: bool) -> float:
        called.append((monitored, given.steps))
        return 5.0 if len(called) == 1 else 1.5 if monitored else 1.0

    monkeypatch.setattr(monitor_overhead, "seconds", seconds)
    options = ["--results", str(tmp_path / "x.json"), "--steps", "60", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", ["monitor_overhead", *options])
    monitor_overhead.main()
    assert json.loads((tmp_path / "x.json").read_text())["runs"]["gluon"]["share"] == 0.5
    assert called == [(False, 2), (True, 2), *[(False, 60), (True, 60)] * 2]


def test_the_threads_on_record_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads: list[int] = []
    monkeypatch.setattr(small_tasks, "environment", lambda: threads.append(torch.get_num_threads()))
    monkeypatch.setattr("sys.argv", ["x"])
    try:
        torch.set_num_threads(2)
        run = lambda *_: threads.append(torch.get_num_threads())  # noqa: E731
        small_tasks.continued(argparse.ArgumentParser(), tmp_path / "none.json", run, str)
    finally:
        torch.set_num_threads(1)
    assert threads == [1, 1]


def test_the_docs_show_the_committed_results() -> None:
    report = json.loads(Path("benchmarks/results/compare_cifar10.json").read_text())
    page = Path("docs/comparison.md").read_text()
    assert compare.table(report, [1, 2, 3]).rstrip() in page
    for row in report["rows"]:
        loss, accuracy = row["test/loss"][0], row["test/accuracy"][0]
        assert row["method"] in page.split("--methods ")[1].split("\n")[0].split()
        if row["method"] in ("gluon", "muon", "adamw", "gluon-mvr1"):
            assert f"`{row['method']}` {loss:.2f} ({100 * accuracy:.1f} %)" in Path("README.md").read_text()


def test_the_companions_rate_reaches_every_group_but_the_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}

    def fit(trainer: Any, module: Any, datamodule: Any) -> None:
        module.trainer = trainer
        optimizer = module.configure_optimizers()["optimizer"]
        seen.update({group["name"]: group["initial_lr"] * group["radius"] for group in optimizer.param_groups})
        raise FloatingPointError("stop here")

    monkeypatch.setattr(compare.Trainer, "fit", fit)
    monkeypatch.setattr(compare.Trainer, "optimizers", [compare.lightning_gluon.Gluon(torch.nn.Linear(2, 2), lr=0.1)])
    run = compare.train("digits", None, "muon", 0.04, 0.002, 0, 10)
    assert run["metrics"]["val/loss"] == math.inf
    assert seen.pop("hidden") == pytest.approx(0.04)
    assert len(seen) >= 3
    assert list(seen.values()) == [pytest.approx(0.002)] * len(seen)
