"""Private parts of Lightning: each one that is listed exists, and each one that is used is listed."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import pytest
import torch

import lightning_gluon
from lightning_gluon.replay.lightning import (
    PRIVATE,
    TRIED,
    Private,
    check_log,
    is_trial,
    late_state,
    log_values,
    loss_scale,
    should_log,
    state_key,
    stepping_batches,
    trainer_of,
)
from tests._two_point import Loader, Memory, Net, data, fit, trainer

PACKAGE = Path(lightning_gluon.__file__).parent
HERE = PACKAGE / "replay" / "lightning.py"
BY_NAME = PACKAGE / "two_point" / "closures.py"  # below Lightning: it knows two functions by their names


def roots(name: str) -> dict[str, Any]:
    """The objects that paths begin at, in one of the two packages."""
    package = importlib.import_module(name)
    runner = package.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return {
        "trainer": runner,
        "module": package.LightningModule(),
        "callback": package.Callback(),
        "precision": runner.precision_plugin,
        "strategy": package.strategies.DDPStrategy(),
        "optimizer": importlib.import_module(f"{name}.core.optimizer"),
    }


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.path)
def test_every_private_part_exists(private: Private, package: str) -> None:
    pytest.importorskip(package)
    check(private, roots(package))


def check(private: Private, objects: dict[str, Any]) -> None:
    root, *names = private.path.split(".")
    found = objects[root]
    for name in names:
        if not hasattr(found, name):
            pytest.fail(
                f"lightning {lightning.__version__} has no `{name}` in `{private.path}`, which {TRIED} had. "
                f"It is used for: {private.use}. See lightning_gluon/replay/lightning.py."
            )
        found = getattr(found, name)


def test_a_missing_part_is_named_with_both_versions() -> None:
    gone = Private("trainer.fit_loop._no_such_thing", "a test")
    with pytest.raises(pytest.fail.Exception, match=f"{lightning.__version__} has no `_no_such_thing`.*{TRIED} had"):
        check(gone, roots("lightning.pytorch"))


def test_the_version_that_was_tried_is_not_older_than_the_lowest_allowed() -> None:
    from packaging.version import Version

    assert Version(TRIED) >= Version("2.6.6")


# ---------------------------------------------------------------- one file


def attributes(path: Path) -> set[str]:
    """Private attributes that a file reads from anything but `self`, `cls` and modules of its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if not own:
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)  # for getattr
    return found


LISTED = {name for private in PRIVATE for name in private.path.split(".")[1:] if name.startswith("_")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_they_are_touched_in_one_file(path: Path) -> None:
    touched = attributes(path) & (LISTED | {"do_nothing_closure"})
    if path == HERE:
        assert touched == LISTED - {"_wrap_closure"}
    elif path == BY_NAME:
        assert touched == {"_wrap_closure", "do_nothing_closure"}
    else:
        assert touched == set()


def test_no_other_private_part_is_read_by_those_who_know_lightning() -> None:
    """What is private and not of the file itself is torch's, or a package's own."""
    torchs = {"_foreach_add_", "_foreach_mul_", "_buffers", "_modules", "_parameters"}
    for folder in ("replay", "callbacks"):
        for path in (PACKAGE / folder).glob("*.py"):
            text = path.read_text()
            read = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
            private = {name for name in read if name.startswith("_") and not name.startswith("__")}
            foreign = {name for name in private if f"def {name}(" not in text and f"self.{name}" not in text}
            allowed = LISTED if path == HERE else torchs
            assert foreign <= allowed, path


# ---------------------------------------------------------------- what they are used for


def test_a_module_without_a_trainer_has_none() -> None:
    assert trainer_of(torch.nn.Linear(2, 2)) is None
    assert trainer_of(Net()) is None


def test_stepping_batches_are_none_if_nobody_knows() -> None:
    runner = fit(Net(), limit_train_batches=3)
    assert stepping_batches(runner) == 3
    endless = trainer(max_epochs=-1)
    endless.fit_loop.epoch_loop.max_steps = -1

    class Counts(Net):
        def on_train_start(self) -> None:
            seen.append(stepping_batches(self.trainer))
            self.trainer.should_stop = True

    seen: list[int | None] = []
    endless.fit(Counts(), Loader(data()))
    assert seen == [None]


def test_logging() -> None:
    memory = Memory()

    class Logs(pl.Callback):
        def on_train_batch_end(self, runner: pl.Trainer, *args: Any) -> None:
            if should_log(runner):
                log_values(runner, {"one": 1.0, "none": float("nan")})

    runner = fit(Net(), logger=memory, log_every_n_steps=3, callbacks=[Logs()])
    rows = [(step, row) for step, row in memory.rows if "one" in row]
    assert [row for _, row in rows] == [{"one": 1.0}] * len(rows)
    assert len(rows) == 2
    assert runner.callback_metrics["one"] == 1.0
    assert check_log(runner, None, "X") and not check_log(runner, False, "X")
    with pytest.raises(ValueError, match=r"`X\(log=True\)` needs a logger"):
        check_log(trainer(), True, "X")
    assert not check_log(trainer(), None, "X")
    assert not is_trial(runner) and is_trial(trainer(fast_dev_run=True))
    assert loss_scale(runner) == 1.0


def test_keys_and_late_states() -> None:
    callback = pl.Callback()
    assert state_key(callback, every=3) != state_key(callback, every=4)
    assert late_state(trainer(), callback) is None
