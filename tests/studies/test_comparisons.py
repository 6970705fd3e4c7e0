"""Comparisons of methods, estimators and norms: equal gradients, what a second call does, what the docs show."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    compare,
    estimators,
    monitor_overhead,
    small_tasks,
    tables,
)
from benchmarks.journal import Journal, read


def test_compare_at_equal_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(compare, "WIDEN", 1)
    file = tmp_path / "digits.jsonl"
    command = ["--task", "digits", "--evaluations", "6", "--seeds", "1", "2", "--factors", "1", "--output", str(file)]
    compare.main([*command, "--methods", "gluon-mvr1", "muon"])
    rows = Journal(file)
    two, muon = rows.of("summary")
    assert (two["steps"], two["evaluations"], two["companion sweep"]) == (3, 5, None)  # the first step needs only one
    assert (muon["steps"], muon["evaluations"]) == (6, 6)
    assert len(muon["sweep"]) == len(muon["companion sweep"]) == 2  # widened once
    assert set(muon["companion sweep"]) < {0.001, 0.002, 0.004}  # around AdamW's own rate
    best = [run for run in rows.of("run") if run["method"] == "muon" and run["seed"] in (1, 2)]
    assert {(run["lr"], run["companion"]) for run in best} == {(muon["sweep"][0], muon["companion sweep"][0])}
    losses = [run["metrics"]["test/loss"] for run in best]
    assert muon["test/loss"][0] == pytest.approx(sum(losses) / 2)
    swept = [run for run in rows.of("run") if run["seed"] == 0 and run["method"] == "gluon-mvr1"]
    assert two["sweep"][0] == min(swept, key=lambda run: run["metrics"]["val/loss"])["lr"]
    assert file.with_suffix(".md").read_text().count("| muon |") == 1
    assert file.with_suffix(".png").exists()

    monkeypatch.setattr(compare, "fingerprint", lambda *_: "others")
    with pytest.raises(SystemExit, match="holds runs on other data"):
        compare.main([*command, "--methods", "gluon"])
    monkeypatch.setattr(compare, "train", lambda *_: pytest.fail("trained twice"))
    compare.main([*command, "--methods", "gluon-mvr1", "muon"])
    assert read(file) == rows.rows
    with pytest.raises(SystemExit, match=r"holds runs with .*digits"):
        compare.main(["--task", "text", "--output", str(file)])
    with pytest.raises(SystemExit, match=r"`--methods` out of adamw, .* got muom"):
        compare.main(["--methods", "muom", "--output", str(file)])


def test_estimators_at_equal_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    file = tmp_path / "digits.jsonl"
    command = ["--task", "digits", "--evaluations", "6", "--seeds", "1", "2", "--rates", "0.02", "0.01"]
    command += ["--momenta", "0.9", "0.8", "--finalists", "1", "--levels", "0.5", "--output", str(file)]
    names = ["ema", "dual", "mvr1 0.25", "lowrank r4 int4", "adamw"]
    estimators.main([*command, "--rows", *names, "--minutes", "0"])
    assert "the same command goes on" in capsys.readouterr().out
    estimators.main([*command, "--rows", *names])
    runs = Journal(file).of("run")
    levels = [run for run in runs if run["share"] == 0.5]
    assert {run["seed"] for run in levels} == {1, 2} and {run["steps"] for run in levels} <= {2, 3}
    screened = [run for run in runs if run["seed"] == 0 and run["momentum"] in (0.9, None)]
    assert {run["lr"] for run in screened if run["row"] == "adamw"} == {0.001, 0.002}
    assert all("test/loss" in run["metrics"] for run in runs if run["seed"] != 0)
    assert len(screened) == 2 * len(names)
    assert {run["row"]: run["steps"] for run in screened} == {name: 3 if "mvr1" in name else 6 for name in names}
    whole = [run["evaluations"] for run in runs if run["share"] == 1]
    assert set(whole) <= {5, 6}, "the first step of two gradients needs only one"
    finalists = {run["row"] for run in runs if run["seed"] != 0}
    assert len(finalists) == 3 and {"ema", "adamw"} < finalists
    for name in finalists - {"adamw"}:
        swept = [run for run in runs if run["row"] == name and run["seed"] == 0]
        assert {(run["lr"], run["momentum"]) for run in swept} == {(lr, b) for lr in (0.01, 0.02) for b in (0.8, 0.9)}
        chosen = min(swept, key=lambda run: run["metrics"]["val/loss"])
        reported = [run for run in runs if run["row"] == name and run["seed"] in (1, 2)]
        assert {(run["lr"], run["momentum"]) for run in reported} == {(chosen["lr"], chosen["momentum"])}
    bytes_of = {run["row"]: run["bytes_per_parameter"] for run in screened}
    assert bytes_of["ema"] == bytes_of["dual"] == 4 and bytes_of["mvr1 0.25"] == 8 and bytes_of["lowrank r4 int4"] < 2.5
    page = file.with_suffix(".md").read_text()
    assert all(f"| {name} |" in page for name in names)

    monkeypatch.setattr(compare, "fit", lambda *_, **__: pytest.fail("trained twice"))
    estimators.main([*command, "--rows", *names, "--screen"])
    lines = file.with_suffix(".md").read_text().splitlines()[4:]
    shown = {cells[1].strip(): float(cells[2]) for cells in (line.split("|") for line in lines)}
    lowest = {name: min(run["metrics"]["val/loss"] for run in screened if run["row"] == name) for name in names}
    assert shown == {name: round(loss, 3) for name, loss in lowest.items()}
    assert list(shown.values()) == sorted(shown.values())
    estimators.main([*command, "--rows", *names])
    assert Journal(file).of("run") == runs
    with pytest.raises(SystemExit, match=r"`--rows` out of .*ema, .* got emma"):
        estimators.main(["--rows", "emma", "--output", str(file)])


def test_the_norms_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    cases = [tables.Case("centred_row", tied, 300) for tied in (True, False)]
    monkeypatch.setattr(tables, "CASES", cases)
    assert [case.table for case in cases] == ["centred_row", "row"]
    command = [
        "--evaluations",
        "4",
        "--rates",
        "0.01",
        "0.02",
        "--seeds",
        "0",
        "1",
        "--output",
        str(tmp_path / "t.jsonl"),
    ]
    tables.main(command)
    runs = Journal(tmp_path / "t.jsonl").of("run")
    assert [run["seed"] for run in runs] == [0, 0, 0, 0, 1, 1]
    for run in runs:
        last = run["tables"][-1]
        assert last["step"] == run["steps"] == 4
        assert (last["table"] == last["head"]) is run["tied"]
        assert last["head"]["rows"] <= last["head"]["longest"] <= last["head"]["spectral"]
    monkeypatch.setattr(compare, "fit", lambda *_, **__: pytest.fail("trained twice"))
    tables.main([*command, "--table"])
    assert "| 300 | apart | centred_row |" in capsys.readouterr().out


def test_every_row_of_the_estimators_can_be_built() -> None:
    for row in estimators.rows().values():
        arguments = {"method": row.method, **row.options}
        assert compare.gradients(arguments) in (1, 2)


def test_a_diverged_seed_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def train(task: str, path: str | None, name: str, lr: float, companion: float | None, seed: int, evaluations: int):
        loss = math.inf if seed == 2 else lr + seed
        metrics = {"val/loss": abs(lr - 0.02), "test/loss": loss}
        run = {"method": name, "lr": lr, "companion": companion, "seed": seed, "steps": 1, "evaluations": 1}
        return {**run, "seconds": 0, "metrics": metrics, "curve": [], "failure": "not finite" if seed == 2 else None}

    monkeypatch.setattr(compare, "train", train)
    file = tmp_path / "digits.jsonl"
    compare.main(["--task", "digits", "--methods", "gluon", "--seeds", "1", "2", "--output", str(file)])
    assert "| gluon | inf ± nan | nan ± nan | 0.02 [0.01, 0.02, 0.04] |" in file.with_suffix(".md").read_text()


def test_the_first_calls_are_not_the_monitors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[bool, int]] = []

    def seconds(method: str, given: Any, monitored: bool) -> float:
        called.append((monitored, given.steps))
        return 5.0 if len(called) == 1 else 1.5 if monitored else 1.0

    monkeypatch.setattr(monitor_overhead, "seconds", seconds)
    options = ["--results", str(tmp_path / "x.jsonl"), "--steps", "60", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", ["monitor_overhead", *options])
    monitor_overhead.main()
    assert [run["share"] for run in Journal(tmp_path / "x.jsonl").of("run")] == [0.5]
    assert called == [(False, 2), (True, 2), *[(False, 60), (True, 60)] * 2]


def test_the_threads_on_record_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["x"])

    def run(_: argparse.Namespace, rows: Journal) -> None:
        rows.append("run", threads=torch.get_num_threads())

    try:
        torch.set_num_threads(2)
        small_tasks.continued(argparse.ArgumentParser(), tmp_path / "none.jsonl", run, str)
    finally:
        torch.set_num_threads(1)
    assert [row["threads"] for row in read(tmp_path / "none.jsonl")] == [1, 1]


def test_the_docs_show_the_committed_results() -> None:
    rows = Journal(Path("benchmarks/results/compare_cifar10.jsonl"))
    summaries, page = rows.latest("summary", "method"), Path("docs/comparison.md").read_text()
    assert compare.table(rows.of("header")[0], summaries, [1, 2, 3]).rstrip() in page
    for row in summaries:
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
