"""The CLI of a Trainer: what it accepts, saves and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lightning_gluon import Gluon
from lightning_gluon.cli.fit import GluonCLI
from tests.cli._boring import Silent, boring, fit_options


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer.method=muom", "--optimizer.lr=0.1"], r"`method` to be one of gluon, .*adamw.* got 'muom'"),
        (["--optimizer.lr=0.1", "--optimizer.rank=4"], r"[Oo]ption `rank` for method 'gluon-nesterov'.*orthogonalizer"),
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


def test_an_incompatible_checkpoint_is_refused(tmp_path: Path) -> None:
    boring(tmp_path, *fit_options(steps=1))
    checkpoint = {"state_dict": {"layer.weight": torch.zeros(3, 3)}, "pytorch-lightning_version": "2.6.6"}
    checkpoint |= {"epoch": 0, "global_step": 0, "loops": {}}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises((RuntimeError, KeyError), match=r"size mismatch for layer.weight"):
        boring(tmp_path, "validate", f"--ckpt_path={tmp_path / 'other.ckpt'}")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "text", "cut off"])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, file)
    file.write_bytes(file.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match=r"a whole checkpoint, but '.*last\.ckpt' cannot be read"):
        boring(tmp_path, "validate", f"--ckpt_path={file}")
