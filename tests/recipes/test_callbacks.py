"""The overlays of callbacks: each runs once on the smallest base, and leaves what it promises."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gluon.callbacks import RadiusScheduler
from lightning_gluon.cli.fit import GluonCLI
from lightning_gluon.tasks import CausalLM
from tests.tasks._chat import TINY, save_tokenizer, sums, write_rows

RECIPES = Path("recipes").resolve()
Fit = Callable[..., GluonCLI]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Run `lightning-gluon fit` with recipes, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-gluon"])

    def run(*recipes: str, **options: object) -> GluonCLI:
        arguments = [f"--config={RECIPES / name}.yaml" for name in recipes]
        arguments += [f"--{name}={value}" for name, value in options.items()]
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return GluonCLI(args=["fit", *arguments, *quiet])

    return run


def events(cli: GluonCLI) -> EventAccumulator:
    return EventAccumulator(cli.trainer.log_dir, size_guidance={"images": 0}).Reload()


def test_monitor_draws_in_tensorboard(fit: Fit) -> None:
    cli = fit("vit/base", "vit/tiny", "methods/gluon", "callbacks/monitor", **{"trainer.max_epochs": 3})
    written = events(cli)
    pictures = {f"smoothness/{name}" for name in ("hidden", "head", "depth", "radii")}
    assert set(written.Tags()["images"]) == pictures
    for name in pictures:
        (image,) = written.Images(name)
        assert image.width > 300
        assert image.step == cli.trainer.global_step
    (curve,) = written.Scalars("smoothness/L_hat/hidden")
    assert curve.value > 0
    assert {path.name for path in Path(cli.trainer.log_dir).glob("smoothness*")} == {
        "smoothness.jsonl", *(f"smoothness_{name}.png" for name in ("hidden", "head", "depth", "radii"))
    }  # fmt: skip


def test_calibrate_finds_a_radius(fit: Fit) -> None:
    cli = fit("vit/base", "vit/tiny", "methods/gluon", "callbacks/calibrate")
    radii = [scalar.value for scalar in events(cli).Scalars("radius/hidden")]
    assert radii == sorted(radii)  # it grows until the loss stops to fall
    assert radii[0] == pytest.approx(1.05**9 / 64)  # ten steps, at the pace of a loss that does not fall yet
    (scheduler,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, RadiusScheduler)]
    assert radii[-1] == pytest.approx(scheduler.rule.main.scale)
    assert radii[-1] < 1.15**40 / 64  # the fastest pace of 40 steps


def test_export_keeps_the_best_model(fit: Fit) -> None:
    fit("vit/base", "vit/tiny", "methods/gluon", "callbacks/export", **{"trainer.max_epochs": 1})
    best = timm.create_model("local-dir:runs/best", pretrained=True)
    assert best(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_answers_are_in_the_log_and_in_a_file(fit: Fit, tmp_path: Path) -> None:
    base = save_tokenizer(tmp_path)
    CausalLM("qwen2", TINY).net.save_pretrained(base)
    rows = write_rows(tmp_path / "sums.jsonl", sums(40))
    names = ("qwen2_5/base", "qwen2_5/finetune", "qwen2_5/chat", "methods/gluon", "callbacks/answers")
    data = {"path": rows, "tokenizer": base, "seq_len": 64, "batch_size": 4, "val_fraction": 0.2}
    options = {f"data.init_args.{name}": value for name, value in data.items()}
    options |= {"model.init_args.name": base, "model.init_args.generation": "{max_new_tokens: 4}"}
    options |= {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "trainer.precision": 32}
    cli = fit(*names, **options)
    lines = (Path(cli.trainer.log_dir) / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert {"prompt", "answer"} <= set(json.loads(lines[0]))
    assert events(cli).Tags()["tensors"]
