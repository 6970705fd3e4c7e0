"""The command line: what it accepts, prints, saves and refuses."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from rich.console import Console

from lightning_gluon import METHODS, Gluon
from lightning_gluon.__main__ import main
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.cli import tables
from lightning_gluon.cli.fit import GluonCLI
from lightning_gluon.cli.tables import build_model
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.options import Options
from lightning_gluon.step.checks import COMMON

QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
]


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest's own arguments, which the CLI would warn about."""
    monkeypatch.setattr(sys, "argv", ["lightning-gluon"])


class Silent(BoringModel):
    """A module without `configure_optimizers`."""

    configure_optimizers = LightningModule.configure_optimizers


def boring(tmp_path: Path, *options: str, model: Any = Silent, **kwargs: Any) -> GluonCLI:
    """Run a command of a small model."""
    places = [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_checkpointing=false"]
    return GluonCLI(model, BoringDataModule, args=[*options, *QUIET, *places], **kwargs)


def fit_options(method: str = "gluon", lr: float = 0.02, steps: int = 3) -> list[str]:
    return ["fit", f"--optimizer.method={method}", f"--optimizer.lr={lr}", f"--trainer.max_steps={steps}"]


# ----------------------------------------------------------------------------------------------------------- optimizers


def test_a_module_without_an_optimizer_trains_with_one_and_a_schedule(tmp_path: Path) -> None:
    cli = boring(tmp_path, *fit_options(steps=4), "--optimizer.schedule=linear", "--optimizer.radius={bias: 0.5}")
    optimizer = cli.trainer.optimizers[0]
    assert isinstance(optimizer, Gluon)
    assert {g["name"]: g["radius"] for g in optimizer.param_groups}["bias"] == 0.5
    assert cli.trainer.global_step == 4
    assert cli.trainer.lr_scheduler_configs[0].interval == "step"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)  # the length came from the Trainer


def test_a_modules_own_optimizer_is_kept_unless_lr_is_given(tmp_path: Path) -> None:
    own = boring(tmp_path, "fit", "--trainer.max_steps=1", model=BoringModel)
    assert isinstance(own.trainer.optimizers[0], torch.optim.SGD)
    replaced = boring(tmp_path, *fit_options("adamw", 1e-3, 1), model=BoringModel)
    assert isinstance(replaced.trainer.optimizers[0], Gluon)


def test_without_any_optimizer_fit_refuses_and_validate_does_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected `optimizer.lr`, since Silent has no `configure_optimizers`"):
        boring(tmp_path, "fit")
    boring(tmp_path, "validate")


def test_rules_reach_the_partition(tmp_path: Path) -> None:
    cli = boring(tmp_path, *fit_options(steps=1), "--optimizer.rules={'layer.weight': elementwise}")
    roles = {n: g["role"] for g in cli.trainer.optimizers[0].param_groups for n in g["param_names"]}
    assert roles["layer.weight"] == "elementwise"
    cli = boring(tmp_path, *fit_options(steps=1), "--optimizer.rules={'layer.weight': {role: hidden, norm: row}}")
    assert [g["norm"] for g in cli.trainer.optimizers[0].param_groups] == ["row", "rms"]


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


# ------------------------------------------------------------------------------------------------------ configurations


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        GluonCLI(Silent, BoringDataModule, args=[*args, "--print_config"])
    return capsys.readouterr().out


def test_print_config_round_trips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["fit", "--optimizer.method=limuon", "--optimizer.lr=0.02", "--optimizer.rank=4"]
    first = printed(capsys, *options, "--optimizer.radius={head: 3.0}", "--optimizer.betas=[0.8, 0.9]")
    assert yaml.safe_load(first)["optimizer"]["rank"] == 4
    (tmp_path / "config.yaml").write_text(first)
    assert printed(capsys, "fit", f"--config={tmp_path / 'config.yaml'}") == first


def test_the_config_is_saved_with_the_run_and_repeats_it(tmp_path: Path) -> None:
    options = [*fit_options(), "--seed_everything=5"]
    first = boring(tmp_path, *options)
    saved = tmp_path / "config.yaml"
    assert yaml.safe_load(saved.read_text())["optimizer"]["lr"] == 0.02
    again = boring(tmp_path / "again", "fit", f"--config={saved}")
    assert torch.equal(first.model.layer.weight, again.model.layer.weight)
    other = boring(tmp_path, *fit_options(), "--seed_everything=6")
    assert not torch.equal(first.model.layer.weight, other.model.layer.weight)


def test_fast_dev_run(tmp_path: Path) -> None:
    cli = boring(tmp_path, *fit_options(), "--trainer.fast_dev_run=true")
    assert cli.trainer.global_step == 1


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer.method=muom", "--optimizer.lr=0.1"], r"`method` to be one of gluon, .*adamw.* got 'muom'"),
        (["--optimizer.lr=0.1", "--optimizer.rank=4"], r"[Oo]ption `rank` for method 'gluon'.*orthogonalizer"),
        (["--optimizer.lr=0.1", "--optimizer.schedule=cos"], r"`schedule` to be one of constant, .* got 'cos'"),
        (["--optimizer.lr=0.1", "--optimizer.warmup=-1"], r"`warmup` to be a number of steps"),
        (["--optimizer.lr=0.1", "--optimizer.decay=2"], r"`decay` to satisfy 0 < decay <= 1"),
        (["--optimizer.lr=-1"], r"`lr`.* 0 <= lr"),
        (["--optimizer.lr=0.1", "--optimizer.radius={hiden: 1}"], r"hidden, input, .* got 'hiden'"),
    ],
)
def test_bad_values_name_the_valid_ones(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises((ValueError, SystemExit), match=message):
        boring(tmp_path, "fit", *options)


@pytest.mark.parametrize("where", ["flag", "yaml"])
def test_an_unknown_option_names_the_valid_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    (tmp_path / "bad.yaml").write_text("optimizer: {method: limuon, lr: 0.1, rnk: 4}")
    options = ["--optimizer.rnk=4"] if where == "flag" else [f"--config={tmp_path / 'bad.yaml'}"]
    with pytest.raises(SystemExit):
        boring(tmp_path, "fit", *options)
    message = capsys.readouterr().err
    assert "Did you mean `rank`?" in message
    assert "method, lr, weight_decay" in message


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--optimizer=gluon", "Expected a section: `--optimizer.method NAME --optimizer.lr NUMBER`"),
        ("--lr=0.1", "Did you mean `optimizer.lr`?"),
        ("--optimzer.lr=0.1", "Did you mean `optimizer`?"),
    ],
)
def test_an_option_in_the_wrong_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        boring(tmp_path, "fit", option)
    assert message in capsys.readouterr().err


def test_options_without_lr_are_not_dropped_in_silence(tmp_path: Path) -> None:
    message = r"leaves the module's own optimizer alone.* got method, rank but no `lr`"
    with pytest.warns(UserWarning, match=message):
        options = ["--optimizer.method=limuon", "--optimizer.rank=4", "--trainer.max_steps=1"]
        boring(tmp_path, "fit", *options, model=BoringModel)
    with pytest.warns(UserWarning, match=message):
        GluonOptimizer("limuon", rank=4).setup(Trainer(accelerator="cpu", logger=False), BoringModel(), "fit")


def test_an_incompatible_checkpoint_is_refused(tmp_path: Path) -> None:
    boring(tmp_path, *fit_options(steps=1))
    checkpoint = {"state_dict": {"layer.weight": torch.zeros(3, 3)}, "pytorch-lightning_version": "2.6.6"}
    checkpoint |= {"epoch": 0, "global_step": 0, "loops": {}}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises((RuntimeError, KeyError), match=r"size mismatch for layer.weight"):
        boring(tmp_path, "validate", f"--ckpt_path={tmp_path / 'other.ckpt'}")


# ------------------------------------------------------------------------------------------------------------- commands


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "lightning-gluon fit -c" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"Expected a command out of fit, validate, .* got 'fti'"):
        main(["fti"])


def test_missing_jsonargparse_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit, match=r'pip install "lightning-gluon\[cli\]"'):
        main(["fit"])


def test_methods_prints_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods"])
    table = capsys.readouterr().out
    assert all(f"│ {name} " in table for name in METHODS)
    for width in (60, 80, 100):
        narrow = io.StringIO()
        Console(file=narrow, width=width).print(tables._overview(width), tables._detail("limuon"))
        printed = narrow.getvalue()
        assert all(f"│ {name} " in printed for name in METHODS) and "…" not in printed
        assert all(word in printed for word in ("gradients", "orthogonalised", "power_iterations=1"))
    main(["methods", "limuon"])
    assert "rank=None" in (printed := capsys.readouterr().out)
    assert re.search(r"input +│ spectral .* 0.3 ", printed) and "momentum=0.9" in printed
    with pytest.raises(SystemExit, match=r"a method out of gluon, .* got 'limoun'"):
        main(["methods", "limoun"])


@pytest.mark.parametrize(
    ("model", "kwargs", "expected"),
    [
        ("timm/vit_small_patch16_224", "{}", ["patch_embed", "22,050,664"]),
        ("transformers/qwen2", '{"num_hidden_layers": 2}', ["hidden", "head"]),
        ("transformers/MambaConfig", '{"num_hidden_layers": 2}', ["A_log", "46,159,104"]),
        ("transformers/vit", '{"num_hidden_layers": 1}', ["embedding", "elementwise"]),
        ("lightning.pytorch.demos.boring_classes.BoringModel", "{}", ["layer.weight"]),
    ],
)
def test_partition_of_any_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str, kwargs: str, expected: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["partition", "--model", model, "--kwargs", kwargs])
    table = capsys.readouterr().out
    assert all(text in table for text in expected)


def test_partition_of_a_local_configuration_and_with_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen2Config

    Qwen2Config(num_hidden_layers=1, architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path)
    model = build_model(str(tmp_path), {"hidden_size": 64})
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert next(model.parameters()).shape[1] == 64
    monkeypatch.setenv("COLUMNS", "200")
    rules = '{"layer.weight": "elementwise"}'
    main(["partition", "--model", "lightning.pytorch.demos.boring_classes.BoringModel", "--rules", rules])
    assert "elementwise" in capsys.readouterr().out


def test_partition_of_a_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["lightning-gluon", "partition"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Lightning's remarks on a Trainer that is not needed here
        main(["partition", "-c", "recipes/qwen2_5/base.yaml"])
    printed = capsys.readouterr()
    assert "494,032,768" in printed.out
    assert "GPU available" not in printed.err


def test_partition_of_the_configuration_saved_with_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    saved = {"model": {"class_path": "BoringModel"}, "optimizer": {"lr": 0.1}, "ckpt_path": None, "weights_only": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    main(["partition", "-c", str(tmp_path / "config.yaml")])
    assert "layer.weight" in capsys.readouterr().out


class Late(LightningModule):
    """A module that builds its layers when its Trainer asks for them."""

    def configure_model(self) -> None:
        self.layer = torch.nn.Linear(2, 3)


def test_partition_has_the_rules_and_the_late_layers_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model": {"class_path": f"{__name__}.Late"}, "optimizer": {"rules": {"layer.weight": "elementwise"}}}
    (tmp_path / "late.yaml").write_text(yaml.safe_dump(config))
    main(["partition", "-c", str(tmp_path / "late.yaml")])
    assert "rule 'layer.weight' of the user" in capsys.readouterr().out
    main(["partition", "-c", str(tmp_path / "late.yaml"), "--rules", '{"*.weight": "hidden"}'])
    assert "rule '*.weight' of the user" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m lightning_gluon methods | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stderr == ""


def test_partition_of_a_yaml_without_jsonargparse_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit, match=r'pip install "lightning-gluon\[cli\]"'):
        main(["partition", "-c", "recipes/vit/base.yaml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet50"], "timm/NAME, transformers/TYPE"),
        (["--model", "timm/resnet51"], r"a model of timm, but got 'resnet51'. Similar names: resnet"),
        (["--model", "transformers/qwen2.5"], r"a model type of transformers, .* Similar names: qwen2,"),
        (["--model", "transformers/qwen2", "--kwargs", '{"num_layer": 2}'], r"entries of Qwen2Config .* 'num_layer'"),
        (["--model", "timm/resnet50", "--kwargs", '{"depth": 4'], r"`--kwargs` to be a JSON object such as"),
        (["--model", "timm/resnet50", "--rules", "[1]"], r"`--rules` to be a JSON object"),
        (["--model", "no.such.Module"], "ModuleNotFoundError"),
        (["--model", "Qwen/Qwen2.5-0.5B"], r"Without a network give .* `--model transformers/qwen2 "),
        (["--model", "torch.nn.ReLU"], "ValueError"),
    ],
)
def test_partition_of_nothing_says_so(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["partition", *arguments])


def test_class_paths_of_the_folder_one_stands_in(tmp_path: Path) -> None:
    source = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(3, 4)\n"
    (tmp_path / "mine.py").write_text(source)
    script = "import sys; sys.path.pop(0); from lightning_gluon.__main__ import main; main()"
    command = [sys.executable, "-c", script, "partition", "--model", "mine.Net"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4x3" in done.stdout
