"""Models from names: what is built, and what is not called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_gluon.__main__ import main
from lightning_gluon.cli.models import build_model
from lightning_gluon.configurations import configuration


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


CALLS: list[str] = []


class Factory:
    """A class that makes no model."""

    def __init__(self) -> None:
        CALLS.append("Factory")


def annotated(width: int) -> torch.nn.Linear:
    return torch.nn.Linear(width, width)


def not_annotated(width: int = 1):
    CALLS.append("not_annotated")


def of_numbers() -> int:
    CALLS.append("of_numbers")
    return 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("os.mkdir", "a function without that annotation"),
        (f"{__name__}.not_annotated", "a function without that annotation"),
        (f"{__name__}.of_numbers", "a function without that annotation"),
        (f"{__name__}.Factory", "another class"),
        ("subprocess.Popen", "another class"),
        ("os.environ", "of type _Environ"),
    ],
)
def test_only_models_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"Expected {path} to be a subclass of nn.Module.*{kind}. It was not called."):
        build_model(path, {"path": "made"} if path == "os.mkdir" else {})
    assert CALLS == []
    assert list(tmp_path.iterdir()) == []


def test_a_function_that_says_it_returns_a_model_is_one() -> None:
    assert build_model(f"{__name__}.annotated", {"width": 3}).weight.shape == (3, 3)


def test_a_configuration_names_model_classes_only(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    names = ["TrainingArguments", "pipeline", "logging", "Qwen2Config"]
    Qwen2Config(num_hidden_layers=1, hidden_size=64, architectures=names).save_pretrained(tmp_path)
    assert type(build_model(str(tmp_path), {})).__name__ == "Qwen2ForCausalLM"  # what the type of the model says


def test_code_beside_a_configuration_is_not_run(tmp_path: Path) -> None:
    entry = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(entry))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConnectionError, match=r"Expected '.*' to be a folder with a `config.json`"):
        build_model(str(tmp_path), {})
    assert not (tmp_path / "ran").exists()


def test_a_module_of_timm_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 5}))
    assert build_model(f"timm/local-dir:{tmp_path}", {}).fc.out_features == 5


def test_entries_of_a_folder_are_checked(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    Qwen2Config(num_hidden_layers=1).save_pretrained(tmp_path)
    assert configuration(str(tmp_path), {"hidden_size": 64}).hidden_size == 64
    with pytest.raises(ValueError, match=r"entries of Qwen2Config, but got 'hiden_size'. Similar names: hidden"):
        configuration(str(tmp_path), {"hiden_size": 64})
