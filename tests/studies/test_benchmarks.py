"""The benchmarks whose results depend on what they keep: what is in the file, what a second call does, what fails."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_gluon
from benchmarks import (
    gpu,
    journal,
    real_sizes,
    step,
    trajectories,
    trajectory_cases,
    trajectory_runs,
)
from benchmarks.journal import Journal, read
from benchmarks.yardsticks import torch_muon, torch_muon_in

# ------------------------------------------------------------------------------------------------ exported names

SCHEDULE = {"benchmarks/ranks.py": {"lightning_gluon.ranks.owners"}}  # a simulation of the package's own
TORCH_INTERNALS = {  # file: what it needs that torch does not export
    "benchmarks/yardsticks.py": {"torch.optim._muon"},
    "benchmarks/counts.py": {"torch._subclasses.fake_tensor", "torch.utils._python_dispatch", "torch.utils._pytree"},
    "benchmarks/memory.py": {"torch.utils._python_dispatch", "torch.utils._pytree"},
}
SCRIPTS = sorted([*Path("benchmarks").rglob("*.py"), *Path("examples").rglob("*.py")])


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of every import; `import a.b` is all of `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def exported(module: str) -> set[str]:
    return set(importlib.import_module(module).__all__)


def public_modules() -> set[str]:
    members = {name: getattr(lightning_gluon, name) for name in lightning_gluon.__all__}
    return {"lightning_gluon"} | {member.__name__ for member in members.values() if inspect.ismodule(member)}


def is_exported(module: str, name: str) -> bool:
    return module in public_modules() and (not name or name in exported(module))


def internals_used(tree: ast.AST) -> set[str]:
    """Return what a script takes from the package beside exported names."""
    names = [pair for pair in imported_names(tree) if pair[0].split(".")[0] == "lightning_gluon"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lightning_gluon":
            names.append(("lightning_gluon", node.attr))
    return {" ".join(pair) for pair in names if not is_exported(*pair) and not pair[1].startswith("__")}


@pytest.mark.parametrize("file", SCRIPTS, ids=str)
def test_scripts_use_exported_names_only(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert {used.split()[0] for used in internals_used(tree)} <= SCHEDULE.get(file.as_posix(), set())
    private = {module for module, name in imported_names(tree) if module.startswith("torch") and "._" in module}
    assert private == TORCH_INTERNALS.get(file.as_posix(), set())


@pytest.mark.parametrize(
    "text",
    [
        "from lightning_gluon.step.plan import build_plan",
        "from lightning_gluon.norms.polar import orthogonalize_",
        "import lightning_gluon.optimizer",
        "from lightning_gluon import methods",
        "from lightning_gluon.norms import NORMS_",
        "import lightning_gluon\nlightning_gluon.step.plan",
    ],
)
def test_the_test_knows_internals(text: str) -> None:
    assert internals_used(ast.parse(text))


# ------------------------------------------------------------------------------------------------------ the rows


def test_a_row_is_on_disk_at_once_and_a_cut_off_line_is_not_a_row(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "x.jsonl"
    first = Journal(file)
    assert first.append("run", loss=math.inf, sizes=(2, 3)) == {"loss": math.inf, "sizes": [2, 3]}
    assert [row["kind"] for row in read(file)] == ["environment", "run"]
    with file.open("a") as stream:
        stream.write('{"kind": "run", "lo')  # what a kill leaves
    assert Journal(file).rows == first.rows
    second = Journal(file)
    second.append("run", loss=1.0)
    assert read(file) == second.rows
    assert [run["loss"] for run in second.of("run")] == [math.inf, 1.0]


def test_every_machine_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 1, 4):
        monkeypatch.setattr(journal, "environment", lambda threads=threads: {"threads": threads})
        rows = Journal(tmp_path / "x.jsonl")
        rows.append("run", model="a", seed=threads)
        rows.append("run", model="b", seed=threads)
    machines = [row["threads"] if row["kind"] == "environment" else row["seed"] for row in rows.rows]
    assert machines == [1, 1, 1, 1, 1, 4, 4, 4]
    assert rows.latest("run", "model") == [{"model": "a", "seed": 4}, {"model": "b", "seed": 4}]
    assert rows.latest("run", "model", "seed")[:2] == [{"model": "a", "seed": 1}, {"model": "b", "seed": 1}]


@pytest.mark.parametrize("line", ["nothing", "[1, 2]", '{"loss": 1}'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"kind": "run"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"Expected line 2 of '.*x.jsonl' to be"):
        Journal(tmp_path / "x.jsonl")


@pytest.mark.parametrize("file", sorted(Path("benchmarks/results").glob("*.json*")), ids=lambda file: file.name)
def test_committed_results_are_rows_with_their_machine_first(file: Path) -> None:
    rows = read(file)
    assert file.suffix == ".jsonl"
    assert rows[0]["kind"] == "environment"
    assert {"date", "torch", "threads", "cpu"} <= rows[0].keys()
    assert any(row["kind"] == "run" for row in rows)


# ---------------------------------------------------------------------------------------------------- real sizes


@pytest.mark.parametrize(("model", "shape"), [("qwen2_5", (16, 1024)), ("mamba", (64, 256))])
def test_real_sizes_take_the_papers_batches(model: str, shape: tuple[int, int]) -> None:
    config = real_sizes.configuration(model, "limuon-r16", tiny=False)
    data = config["data"]["init_args"]
    assert (data["batch_size"], data["seq_len"], data["source"]) == (*shape, "python")
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["optimizer"] == {
        "schedule": "cosine", "warmup": 0.05, "method": "limuon", "lr": 0.01, "momentum": 0.9, "rank": 16
    }  # fmt: skip
    assert data["vocab_size"] <= config["model"]["init_args"]["config"]["vocab_size"]


def test_real_sizes_at_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "real.jsonl"
    command = ["--tiny", "--steps", "3", "--models", "mamba", "vit", "--output", str(file)]
    real_sizes.main([*command, "--methods", "gluon", "limuon-r8"])
    first = Journal(file).of("run")
    assert [row["torch"] for row in Journal(file).of("environment")] == [torch.__version__]
    assert [(run["model"], run["method"]) for run in first] == [
        ("mamba", "gluon"), ("mamba", "limuon-r8"), ("vit", "gluon"), ("vit", "limuon-r8")
    ]  # fmt: skip
    for run in first:
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
    runs = Journal(file).of("run")
    assert runs[:4] == first  # kept, not repeated
    assert [(run["method"], run["failure"]) for run in runs[4:]] == [("adamw", "OutOfMemoryError: no room")] * 2


def test_real_sizes_do_not_mix_or_run_without_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="a CUDA device for the real sizes"):
        real_sizes.main(["--output", str(tmp_path / "x.jsonl")])
    Journal(tmp_path / "x.jsonl").header(steps=7, tiny=True)
    with pytest.raises(SystemExit, match=r"holds runs with .*7"):
        real_sizes.main(["--tiny", "--steps", "3", "--output", str(tmp_path / "x.jsonl")])


# ---------------------------------------------------------------------------------------------------- trajectories


def test_trajectories_repeat_and_tell_a_change() -> None:
    case = trajectory_cases.Case("gluon-mvr1", {"momentum": 0.9})
    one, again = (trajectory_runs.run(case, "mixture", "fp64", 3) for _ in range(2))
    other = trajectory_runs.run(trajectory_cases.Case("gluon-mvr1", {"momentum": 0.9 + 1e-6}), "mixture", "fp64", 3)
    assert trajectories.compare(one, again) == trajectories.Difference()
    found = trajectories.compare(one, other)
    assert found.is_far("fp64") and not found.is_far("fp32")
    assert found.where.endswith("after step 2")  # c_old is c_new in the first step


def test_nan_and_refusals_are_far_and_roles_are_noted() -> None:
    start = [torch.zeros(2)]
    one = trajectory_runs.Trajectory(["w"], {"w": "hidden"}, start, {1: [torch.ones(2)]})
    nan = trajectory_runs.Trajectory(["w"], {"w": "head"}, start, {1: [torch.tensor([1.0, math.nan])]})
    refused = trajectory_runs.Trajectory([], {}, [], refusal="ValueError: no")
    for other in (nan, refused):
        assert all(trajectories.compare(one, other).is_far(precision) for precision in ("fp32", "fp64"))
    assert trajectories.compare(one, nan).notes == ("role of w: hidden here, head there",)
    assert not trajectories.report({"gluon | a | fp64": one}, {"gluon | a | fp64": nan})
    assert not trajectories.report({}, {"gluon | a | fp64": one})  # a case that no longer runs
    assert trajectories.report({"gluon | a | fp64": one}, {})


def test_trajectories_are_written_and_read(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        trajectory_runs.write(tmp_path / "x.pt", ["sgd"], 2, False)
    assert torch.get_num_threads() == threads == 1
    package, rows = trajectory_runs.read(tmp_path / "x.pt")
    assert package == Path(lightning_gluon.__file__).parent
    keys = {
        f"{case} | {model} | {dtype}"
        for case in ("sgd", "sgd momentum=0.5")
        for model in trajectory_cases.MODELS
        for dtype in ("fp64", "fp32")
    }
    assert rows.keys() == keys
    assert trajectories.report(rows, rows)


def test_trajectories_under_the_trainer_move_and_repeat() -> None:
    one, again = (trajectory_runs.train("gluon-mvr1", {"fold": True}, "fp64", 2) for _ in range(2))
    assert trajectories.compare(one, again) == trajectories.Difference()
    assert all(not torch.equal(*pair) for pair in zip(one.start, one.weights[2], strict=True))


def test_a_revision_stands_alone() -> None:
    with trajectories.alone(str(trajectories.ROOT)) as folder:
        assert [path.name for path in folder.iterdir()] == ["lightning_gluon"]
        assert (folder / "lightning_gluon" / "methods.py").exists()


# ------------------------------------------------------------------------------------------------ a step's neighbours


@pytest.fixture(scope="module")
def one_block() -> step.Problem:
    return step.Problem("vit_ti/12", "cpu")


@pytest.mark.parametrize(
    "row", ["torch Muon + AdamW", "pytorch_optimizer SCION", "pytorch_optimizer Muon", "timm Muon", "gluon", "scion"]
)
def test_hidden_matrices_of_a_spectral_row_move_by_an_orthogonal_matrix(one_block: step.Problem, row: str) -> None:
    """All singular values of a step are alike: those of a matrix of signs differ by a factor of ten."""
    if "pytorch_optimizer" in row:
        pytest.importorskip("pytorch_optimizer")
    module = one_block.copy()
    step.ROWS[row](one_block, module).step()
    moved = 0
    for name, parameter in module.named_parameters():
        route = one_block.routes[name]
        if route.role != "hidden" or parameter.shape[0] == parameter.shape[1]:  # a square one may be near singular
            continue
        for view in route.views if row in ("gluon", "scion") else [None]:
            before, after = one_block.weights[name], parameter.detach()
            pair = (before, after) if view is None else (view.gather(before)[0], view.gather(after)[0])
            values = torch.linalg.svdvals((pair[0] - pair[1]).double())
            if view is None or view.matrix[1] != view.matrix[2]:
                assert 0 < values[0] < 2 * values[-1], name
                moved += 1
    assert moved >= 2


def test_rows_by_sign_are_not_taken_for_spectral_ones(one_block: step.Problem) -> None:
    module = one_block.copy()
    step.ROWS["signsgd"](one_block, module).step()
    name = "blocks.0.mlp.fc1.weight"
    values = torch.linalg.svdvals((one_block.weights[name] - module.get_parameter(name).detach()).double())
    assert values[0] > 2 * values[-1]


def test_the_yardstick_is_what_torchs_step_does() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 24))
    weight.grad = torch.randn(16, 24)
    torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
    torch.testing.assert_close(-weight.detach(), torch_muon(weight.grad).float(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_torchs_muon_takes_the_same_step_in_another_dtype(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    steps = []
    for dtype in (None, torch.bfloat16, torch.float32):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = gradient
        optimizer = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0)
        with contextlib.nullcontext() if dtype is None else torch_muon_in(dtype):
            optimizer.step()
        steps.append(weight.detach())
    as_it_is, bf16, fp32 = steps
    assert torch.equal(as_it_is, bf16)
    assert 0 < (as_it_is - fp32).abs().max() < 0.05


def test_ratios_stand_beside_torchs_muon_as_it_is_and_in_our_dtype(one_block: step.Problem) -> None:
    problem = step.Problem("vit_ti/12", "cpu", "float32")
    rows = {name: step.ROWS[name] for name in (step.BASELINE, step.SAME_DTYPE, "gluon", "signsgd")}
    found = dict(step.measure(problem, rows, 2, "processor"))
    assert set(found) == set(rows)
    assert found[step.BASELINE]["ratio"] == found[step.SAME_DTYPE]["ratio_same_dtype"] == 1
    product = found["gluon"]["ratio_of_least"] * found[step.BASELINE]["ratio_same_dtype_of_least"]
    assert product == pytest.approx(found["gluon"]["ratio_same_dtype_of_least"])


# --------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("part", gpu.PARTS)
def test_all_that_a_gpu_is_asked_runs_at_tiny_size(tmp_path: Path, part: int) -> None:
    file = tmp_path / "gpu.jsonl"
    gpu.main(["--part", str(part), "--tiny", "--output", str(file)])
    journal = Journal(file)
    assert [row["section"] for row in journal.of("section")] == [section.name for section in gpu.PARTS[part]]
    rows = journal.of("run")
    assert not [row for row in rows if row.get("error") or row.get("failure")]
    assert {row["section"] for row in rows} == {section.name for section in gpu.PARTS[part]}
    for row in rows:
        if row["section"] == "lmo":
            assert row["gap"] < (0.2 if row["dtype"] == "bfloat16" else 0.06), row
        if row["section"] in ("against CPU", "graphs"):
            assert all(value == 0 for value in row.values() if isinstance(value, float)), row  # the same machine


def test_what_begins_too_late_on_a_gpu_is_left_out(tmp_path: Path, capsys: Any) -> None:
    gpu.main(["--part", "1", "--tiny", "--limit", "-1", "--output", str(tmp_path / "gpu.jsonl")])
    journal = Journal(tmp_path / "gpu.jsonl")
    assert len(journal.of("left out")) == len(gpu.PARTS[1]) and not journal.of("run")
    gpu.main(["--dry-run"])
    shown = capsys.readouterr().out
    assert all(section.name in shown for sections in gpu.PARTS.values() for section in sections)
    assert all(sum(section.minutes for section in sections) <= 6 for sections in gpu.PARTS.values())
