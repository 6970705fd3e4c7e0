"""The optimizer of a module that does not know it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_gluon import METHODS, Gluon
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.options import Options
from lightning_gluon.step.groups import COMMON
from tests.cli._boring import boring


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest's own arguments, which the CLI would warn about."""
    monkeypatch.setattr(sys, "argv", ["lightning-gluon"])


def test_a_schedule_is_checked_before_any_model_is_built() -> None:
    for options, message in (
        ({"schedule": "cos"}, "`schedule`"),
        ({"warmup": -1}, "`warmup`"),
        ({"lr": "Auto"}, "`lr`"),
        ({"rules": {"stem.*": "hiden"}}, "the role of rule 'stem.\\*' to be one of hidden"),
    ):
        with pytest.raises(ValueError, match=message):
            GluonOptimizer("gluon", **{"lr": 0.1, **options})
    GluonOptimizer("gluon", lr="auto", schedule="cosine", warmup=0.1)  # a length is asked of the Trainer later


def test_every_option_of_every_method_is_an_argument() -> None:
    accepted = set(Options.__annotations__)
    options = {*COMMON, "start", "scaling"}.union(*(row.options for row in ESTIMATORS.values()))
    assert options <= accepted, f"add {options - accepted} to Options"


def test_the_callback_serves_the_stock_trainer_and_cli(tmp_path: Path) -> None:
    module = BoringModel()
    callback = GluonOptimizer("muon", lr=0.02, warmup=2, total_steps=3, schedule="cosine")
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=3, accelerator="cpu", callbacks=[callback], default_root_dir=tmp_path, **options)
    trainer.fit(module)
    assert isinstance(trainer.optimizers[0], Gluon)
    assert len(trainer.lr_scheduler_configs) == 1

    config = tmp_path / "stock.yaml"
    entry = {"class_path": "lightning_gluon.callbacks.GluonOptimizer", "init_args": {"method": "scion", "lr": 0.01}}
    config.write_text(yaml.safe_dump({"trainer": {"max_steps": 2, "callbacks": [entry], **options}}))
    args = ["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    cli = LightningCLI(BoringModel, args=args, save_config_kwargs={"overwrite": True})
    assert cli.trainer.optimizers[0].param_groups[0]["weight_decay"] == METHODS["scion"].weight_decay
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    written = {k: v for k, v in saved["trainer"]["callbacks"][0]["init_args"].items() if v is not None}
    assert (written["method"], written["lr"]) == ("scion", 0.01)


def test_options_without_lr_are_not_dropped_in_silence(tmp_path: Path) -> None:
    message = r"leaves the module's own optimizer alone.* got method, rank but no `lr`"
    with pytest.warns(UserWarning, match=message):
        options = ["--optimizer.method=limuon", "--optimizer.rank=4", "--trainer.max_steps=1"]
        boring(tmp_path, "fit", *options, model=BoringModel)
    with pytest.warns(UserWarning, match=message):
        GluonOptimizer("limuon", rank=4).setup(Trainer(accelerator="cpu", logger=False), BoringModel(), "fit")
