"""The optimizer of a module that does not know it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_gluon import METHODS, Gluon
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.options import Options
from lightning_gluon.step.checks import COMMON
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


class Listed(Sequence):
    """A sequence that is no list or tuple, as OmegaConf's ListConfig."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


class Mapped(Mapping):
    """A mapping that is no dict, as OmegaConf's DictConfig."""

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Any:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def is_plain(value: Any) -> bool:
    """Whether a value is one that a checkpoint holds without a foreign class."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    if isinstance(value, Mapping):
        return type(value) is dict and all(map(is_plain, value.values()))
    return isinstance(value, torch.Tensor) or type(value) in (int, float, str, bool, type(None))


def test_configurations_of_hydra_become_plain_values() -> None:
    rules = Mapped(**{"0.weight": Mapped(role="hidden", norm="row"), "1.weight": "head"})
    decay, radius = Mapped(bias=0.0), Mapped(bias=0.5, head=2.0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    optimizer: Any = GluonOptimizer("gluon", 0.02, decay, radius, rules=rules).configure(model)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["hidden-row"]["norm"] == "row"
    assert (groups["bias"]["radius"], groups["head"]["radius"], groups["bias"]["weight_decay"]) == (0.5, 2.0, 0.0)
    adam: Any = GluonOptimizer("adamw", 1e-3, betas=Listed(0.8, 0.95)).configure(model)  # type: ignore[arg-type]
    assert adam.param_groups[0]["betas"] == (0.8, 0.95)
    for group in [*optimizer.param_groups, *adam.param_groups]:
        assert is_plain({key: value for key, value in group.items() if key != "params"})


def test_bad_values_of_hydra_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Expected `betas`.* to be two numbers"):
        GluonOptimizer("adamw", 1e-3, betas=Listed(0.8, 0.95, 0.9))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the keys of `radius`.* got 'bais'"):
        GluonOptimizer("gluon", 0.02, radius=Mapped(bais=0.5))  # type: ignore[arg-type]


def test_a_compile_mode_is_checked_at_construction() -> None:
    GluonOptimizer("gluon", 0.02, compile="reduce-overhead")
    with pytest.raises(ValueError, match=r"Expected `compile` to be one of .*reduce-overhead, .* but got 'fastest'"):
        GluonOptimizer("gluon", 0.02, compile="fastest")


def test_without_lr_there_is_nothing_to_configure() -> None:
    with pytest.raises(ValueError, match=r"Expected `lr` to be given to GluonOptimizer"):
        GluonOptimizer("gluon").configure(torch.nn.Linear(2, 2))


class Text(BoringModel):
    """A table, a hidden layer and an output layer, without a word on optimizers."""

    def __init__(self) -> None:
        super().__init__()
        del self.layer  # which would be the first one
        self.embed = torch.nn.Embedding(5, 32)
        self.middle = torch.nn.Linear(32, 32)
        self.layer = torch.nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.middle(x).relu() + self.embed(torch.zeros(len(x), dtype=torch.long)))


def test_the_optimizer_of_the_stock_cli_knows_the_module(tmp_path: Path) -> None:
    options = [f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
    options += ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
    args = ["fit", *options, "--optimizer=lightning_gluon.Gluon", "--optimizer.lr=0.01", "--optimizer.method=scion"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*came without their module.*")
        cli = LightningCLI(Text, args=args, save_config_callback=None)
    optimizer = cli.trainer.optimizers[0]
    roles = {name: group["role"] for group in optimizer.param_groups for name in group["param_names"]}
    assert (roles["embed.weight"], roles["middle.weight"], roles["layer.weight"]) == ("embedding", "hidden", "head")
    assert optimizer.param_groups[0]["weight_decay"] == METHODS["scion"].weight_decay
