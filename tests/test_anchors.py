"""Tasks with published numbers: what they ask for, what a second call does, and what their tables say."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from benchmarks import small_tasks, steps_to_loss
from benchmarks.anchors import california, cifarnet, least_squares, report, runner, shakespeare, smoothness
from benchmarks.journal import Journal


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def houses(folder: Path) -> Path:
    """Write 20,640 houses whose value is a function of what is known of them."""
    draw = numpy.random.default_rng(1)
    columns = draw.uniform(1, 5, (20_640, 9))
    columns[:, 8] = 100_000 * (columns[:, 7] + columns[:, 3] / columns[:, 6])
    numpy.savetxt(folder / "cal_housing.data", columns, delimiter=",", fmt="%.4f")
    return folder


def plays(folder: Path) -> Path:
    (folder / "input.txt").write_text("to be or not to be, that is the question.\n" * 100)
    return folder


def pictures(path: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(str(path)))
    return torch.randn(60, 3, 32, 32, generator=generator), torch.arange(60) % 10


def test_california_tunes_reports_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "anchor_california.jsonl"
    command = ["--path", str(houses(tmp_path)), "--evaluations", "4", "--seeds", "1", "2", "--output", str(file)]
    command += ["--rows", "adamw", "muon", "gluon-nesterov", "auto"]
    known = california.California.rows
    short = {name: replace(known[name], rates=known[name].rates[:2]) for name in command[-4:]}
    monkeypatch.setattr(california.California, "rows", short)
    monkeypatch.setattr(california.California, "points", 2)
    monkeypatch.setattr(report, "DRAWS", 20)
    runner.main(california.California, None, [*command, "--minutes", "0"])
    assert "the same command goes on" in capsys.readouterr().out
    runner.main(california.California, None, command)
    runs = Journal(file).of("run")
    rates = {name: {run["lr"] for run in runs if run["row"] == name and run["seed"] == 0} for name in command[-4:]}
    assert list(map(len, rates.values())) == [2, 2, 2, 0]
    tuned = [run for run in runs if run["row"] == "adamw" and run["seed"] == 0]
    rate = min(tuned, key=lambda run: min(point["val"] for point in run["curve"]))["lr"]
    for run in runs:
        assert run["evaluations"] == round(4 * run["share"])
        if run["row"] == "muon":  # AdamW beside it has AdamW's own best rate
            assert run["arguments"]["radius"]["head"] * run["lr"] == pytest.approx(rate)
    assert {run["share"] for run in runs if run["row"] == "gluon-nesterov"} == {0.5, 0.85, 1.0}
    reported = [run for run in runs if run["row"] == "adamw" and run["seed"] != 0]
    assert {run["lr"] for run in reported} == {rate}
    assert len({run["val"] for run in reported}) == 2, "seeds differ"
    page = file.with_suffix(".md").read_text()
    assert "| auto |" in page and ".4936 ± .0110 (tuned)" in page and "- gluon-nesterov, 50%" in page
    assert file.with_suffix(".png").stat().st_size > 10_000

    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained twice"))
    runner.main(california.California, None, command)
    assert Journal(file).of("run") == runs
    steps_to_loss.main([str(file), "--folder", str(tmp_path)])
    assert "gradients to muon's" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"`--rows` out of adamw, .*; got muom"):
        runner.main(california.California, None, ["--path", "x", "--rows", "muom"])


def test_features_are_scikit_learns_and_targets_standard(tmp_path: Path) -> None:
    (tmp_path / "cal_housing.data").write_text("-122.23,37.88,41,880,129,322,126,8.3252,452600\n" * 2)
    first = california.features(tmp_path)[0]
    numpy.testing.assert_allclose(first, [8.3252, 41, 6.98412698, 1.02380952, 322, 2.55555556, 37.88, -122.23])
    task = california.California(houses(tmp_path))
    values, labels = task.data["train"]
    assert values.shape == (13_209, 8) and float(labels.std()) == pytest.approx(1, abs=1e-3)
    constant = torch.nn.Linear(8, 1)
    torch.nn.init.zeros_(constant.weight)
    torch.nn.init.zeros_(constant.bias)
    with torch.no_grad():
        score = task.score(constant, "train")
    assert score == pytest.approx(task.spread, rel=1e-3)  # in units of the targets


def test_rows_of_a_constant_rate_end_at_their_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = california.California(houses(tmp_path))
    scores = iter([3.0, 3.0, 1.0, 1.5, 2.0, 2.0, 4.0, 4.0, 5.0, 5.0])
    monkeypatch.setattr(california.California, "score", lambda *_: next(scores))
    monkeypatch.setattr(california.California, "epoch", 1)
    row = runner.Row("muon", (0.01,), {"schedule": "constant"}, patience=1, average=0.9)
    done = runner.fit(task, row, {**row.options, "method": "muon", "lr": 0.01}, 0, 8)
    assert (done["val"], done["test"], done["steps"]) == (1.0, 1.5, 4)
    published = task.rows["muon, as published"]
    configured = runner.Module(task, published, {**published.options, "method": "muon", "lr": published.rates[0]})
    groups = {group["name"]: group for group in configured.configure_optimizers().param_groups}
    assert len(groups["hidden"]["params"]) == 5, "the first layer is stepped by Muon, as the authors do"
    assert groups["head"]["lr"] * groups["head"]["weight_decay"] == pytest.approx(0.00017016 * 0.2213)


def test_shakespeare_has_nanogpts_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shakespeare.CharacterModel(65)
    counted = sum(p.numel() for p in model.parameters()) - model.wpe.weight.numel()
    assert round(counted / 1e6, 2) == 0.80  # nanoGPT prints 0.80M, without positions
    task = shakespeare.Shakespeare(plays(tmp_path))
    inputs, targets = next(task.batches(0, 1))
    assert inputs.shape == (12, 64) and torch.equal(inputs[:, 1:], targets[:, :-1])
    changed = inputs.clone()
    changed[:, 40:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(inputs)[:, :40], model(changed)[:, :40])  # no look into the future
    monkeypatch.setattr(shakespeare, "WINDOWS", 4)
    monkeypatch.setattr(task, "net", lambda: shakespeare.CharacterModel(task.characters, width=16, depth=1))
    row = task.rows["adamw, as published"]
    done = runner.fit(task, row, {**row.options, "method": "adamw", "lr": 0.01}, 0, 20)
    assert done["val"] == done["test"] < done["curve"][0]["val"] < math.log(task.characters) + 0.5


def test_cifarnet_trains_its_blocks_by_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_tasks, "images", pictures)
    monkeypatch.setattr(cifarnet, "BATCH", 20)
    task = cifarnet.Cifar(tmp_path)
    row = task.rows["gluon"]
    arguments = {**row.options, "method": "gluon", "lr": 0.02}
    module = runner.Module(task, row, {**arguments, "total_steps": 4})
    counts = {group["name"]: len(group["params"]) for group in module.configure_optimizers()["optimizer"].param_groups}
    assert counts["hidden"] == 6 and counts["head"] == 1 and module.net.whiten.weight.requires_grad is False
    assert len(list(task.batches(0, 4))) == 4
    done = runner.fit(task, row, arguments, 0, 4)
    assert done["steps"] == 4 and 0 <= done["test"] <= 1
    moved = module.net.whiten(task.data["train"][0][:200])
    covariance = moved.permute(1, 0, 2, 3).flatten(1)[:12].cov()
    assert float((covariance.diag() - 1).abs().max()) < 0.2, "patches are white"


def test_images_are_shifted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.arange(32.0)[None, None, :, None] + 100 * torch.arange(32.0)
    shifted = cifarnet.augmented(image.expand(50, 3, 32, 32).contiguous(), torch.Generator().manual_seed(0))
    inner = shifted[:, :, 2:-2, 2:-2]
    assert torch.equal(inner[:, 0].diff(dim=1).unique(), torch.tensor([1.0]))
    assert torch.equal(inner[:, 0].diff(dim=2).unique(), torch.tensor([-100.0, 100.0]))


def test_rows_of_equal_length_are_slow_where_rows_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "squares.jsonl"
    monkeypatch.setattr(least_squares, "RATES", [0.23, 0.77, 2.6])
    monkeypatch.setattr(least_squares, "METHODS", {"muon": {}, "normuon": {}})
    least_squares.main(["--steps", "36", "--sizes", "8", "512", "--output", str(file)])
    gained = {(run["row"], run["rows"]): run["decades"] for run in Journal(file).of("run")}
    assert gained["muon", 8] == pytest.approx(gained["normuon", 8], abs=0.1)  # square: the same step
    assert gained["muon", 512] > gained["normuon", 512] + 0.5
    assert "(5.70)" in file.with_suffix(".md").read_text()


def test_constants_are_measured_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_tasks, "images", pictures)
    file = tmp_path / "smoothness.jsonl"
    command = ["--cifar10", str(tmp_path), "--steps", "9", "--every", "2", "--output", str(file)]
    smoothness.main(command)
    runs = {(run["role"], run["estimate"]): run for run in Journal(file).of("run")}
    assert {role for role, _ in runs} == {"hidden", "input", "head"}
    assert runs["hidden", "trajectory"]["matrices"] == 2 and runs["hidden", "same sample"]["samples"] == 4
    assert runs["head", "noise only"]["L1"] == pytest.approx(2**0.5 / (0.01 * 25), rel=1e-3)
    assert "| cnn | hidden | same sample |" in file.with_suffix(".md").read_text()


def run(seed: int, *scores: float) -> dict[str, Any]:
    curve = [{"evaluations": 10 * (place + 1), "val": score} for place, score in enumerate(scores)]
    return {"seed": seed, "evaluations": 10 * len(scores), "val": scores[-1], "curve": curve}


def test_an_early_stop_takes_the_best_validation_point() -> None:
    points = [{"val": 3.0, "test": 1.0}, {"val": 2.0, "test": 5.0}, {"val": 4.0, "test": 0.0}]
    whole = {"curve": points, "val": 4.0, "test": 0.0, "failure": None}
    assert (report.picked(whole)["val"], report.picked(whole)["test"]) == (2.0, 5.0)
    diverged = {**whole, "val": math.inf, "failure": "not finite"}
    assert report.picked(diverged)["val"] == math.inf


def test_gradients_to_a_score_by_hand() -> None:
    baseline = [run(1, 3.0, 2.0), run(2, 3.0, 2.0)]
    assert report.crossing(report.curve([run(1, 4.0, 1.0)]), 2.0) == pytest.approx(10 + 10 * 2 / 3)
    assert report.gradients([run(1, 2.0, 1.0)], baseline) == report.Gradients(0.5, 0.5, 0.5)
    wide = report.gradients([run(1, 2.0, 1.0), run(2, 3.0, 1.0)], baseline)
    assert wide.low == 0.5 < wide.share < wide.high == 0.75
    assert str(report.gradients([run(1, 5.0, 4.0)], baseline)) == "not reached"
    assert str(wide) == "62 % [50 %, 75 %]" or str(wide).startswith("6")


def test_the_committed_files_can_be_read() -> None:
    known = {entry.name: entry for entry in steps_to_loss.rows(Path("benchmarks/results/compare_cifar10.jsonl"))}
    assert len(known["gluon"].runs) == 3
    need = report.gradients(known["gluon"].runs, known["adamw"].runs)
    assert need.low <= need.share <= need.high < 0.5
    for name in ("estimators_cifar10", "estimators_text"):
        names = {entry.name for entry in steps_to_loss.rows(Path(f"benchmarks/results/{name}.jsonl"))}
        assert {"adamw", "muon", "ema"} <= names


def test_the_evidence_shows_the_committed_results() -> None:
    page = Path("docs/evidence.md").read_text()
    results = Path("benchmarks/results")
    for file in results.glob("anchor_*.md"):
        lines = [line for line in file.read_text().splitlines() if line.startswith("|")]
        assert "\n".join(lines) in page, file
    assert steps_to_loss.table(steps_to_loss.rows(results / "compare_cifar10.jsonl")) in page
    assert "<!--" not in page
