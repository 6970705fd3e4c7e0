"""The partition of any model, recipe and saved configuration."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from lightning_gluon.__main__ import main

SIZES = '{"in_features": 2, "out_features": 3}'


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


def test_partition_of_a_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["lightning-gluon", "partition"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Lightning's remarks on a Trainer that is not needed here
        warnings.simplefilter("ignore", DeprecationWarning)  # of what Lightning calls in jsonargparse
        main(["partition", "-c", "qwen2_5/base"])
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


def test_partition_of_a_yaml_without_jsonargparse_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit, match=r"pip install 'jsonargparse\[signatures\]"):
        main(["partition", "-c", "recipes/vit/base.yaml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet50"], "timm/NAME, transformers/TYPE"),
        (["--model", "timm/resnet51"], r"a model of timm, but got 'resnet51'. Similar names: resnet"),
        (["--model", "transformers/qwen2.5"], r"a model type of transformers, .* Similar names: qwen2,"),
        (
            ["--model", "transformers/qwen2", "--kwargs", '{"num_layer": 2}'],
            r"Qwen2Config, but got 'num_layer'",
        ),
        (["--model", "timm/resnet50", "--kwargs", '{"depth": 4'], r"`--kwargs` to be a JSON object such as"),
        (["--model", "timm/resnet50", "--rules", "[1]"], r"`--rules` to be a JSON object"),
        (["--model", "no.such.Module"], "there is no module 'no'"),
        (["--model", "Qwen/Qwen2.5-0.5B"], r"Without a network give a model type .* such as qwen2"),
        (["--model", "torch.nn.ReLU"], "elementwise|no trainable|parameter"),
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


def test_installed_packages_come_before_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise SystemExit('the folder was searched first')")
    (tmp_path / "jsonargparse.py").write_text("raise SystemExit('the folder was searched first')")
    script = "import sys; sys.path.pop(0); from lightning_gluon.__main__ import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for arguments in (["--model", "timm/resnet10t"], ["--model", "torch.nn.Linear", "--kwargs", SIZES]):
        command = [sys.executable, "-c", script, "partition", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
