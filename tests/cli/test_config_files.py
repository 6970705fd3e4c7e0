"""YAML that is no configuration is refused before it is parsed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lightning_gluon.cli.config_files import LARGEST_TEXT, check_files, config_files, load_yaml

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def test_aliases_that_expand_without_end_are_refused_at_once(tmp_path: Path) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=r"at most 100,000 values, but its aliases expand to more"):
        load_yaml(LAUGHS)
    with pytest.raises(ValueError, match=r"`&a` contains itself"):
        load_yaml("a: &a [1, *a]")
    (tmp_path / "laughs.yaml").write_text(LAUGHS)
    with pytest.raises(ValueError, match=r"'.*laughs.yaml': Expected YAML of at most"):
        list(check_files(["fit", "-c", str(tmp_path / "laughs.yaml")]))
    assert time.process_time() - start < 1


@pytest.mark.parametrize("option", ["--optimizer.rules={}", "--trainer.callbacks={}", "--model.widths={}"])
def test_values_of_the_command_line_are_bounded_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    from tests.cli._boring import boring

    flow = "{" + LAUGHS.strip().replace("\n", ", ") + "}"
    start = time.process_time()
    with pytest.raises((SystemExit, ValueError)):
        boring(tmp_path, "fit", option.replace("{}", flow))
    assert time.process_time() - start < 5


def test_merge_keys_and_few_aliases_stay() -> None:
    assert load_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}
    assert load_yaml("1e-3") == 1e-3  # as jsonargparse reads numbers
    assert load_yaml("2 * 3") == "2 * 3"


def test_text_of_any_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 1,000,000 characters, but got 1,000,001"):
        load_yaml("x" * (LARGEST_TEXT + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", r"to be YAML, but it is not, line \d, column \d: did not find expected ',' or '\]'"),
        ("\ta: 1", r"to be YAML, but it is not, line 1, column 1: found character that cannot start any token"),
        ("just text", r"to hold sections such as `trainer:` and `model:`, but it holds 'just text'"),
        ("- 1\n- 2", r"but it holds \[1, 2\]"),
        ("trainer: 3", r"Expected the section `trainer` of .* to hold keys, but it is 3"),
        (b"\xff\xfe\x00a", r"but it is not text of that kind"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        list(check_files(["-c", str(tmp_path / "bad.yaml")]))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("trainer: {max_steps: 1}")
    with pytest.raises(ValueError, match=r"there is no '.*bas.yaml'. Did you mean '.*base.yaml'\?"):
        list(check_files(["-c", str(tmp_path / "bas.yaml")]))
    with pytest.raises(ValueError, match=r"to be a file, but '.*' is none"):
        list(check_files(["-c", str(tmp_path)]))
    with pytest.raises(ValueError, match=r"'/dev/zero' is none"):
        list(check_files(["-c", "/dev/zero"]))


def test_pipes_and_remote_files_are_left_to_jsonargparse(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert list(check_files(["-c", str(tmp_path / "pipe"), "-c", "s3://place/a.yaml", "-c", "-"])) == []
    assert list(config_files(["-c"])) == []


def test_files_of_defaults_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lightning_gluon.cli.fit import GluonCLI

    (tmp_path / "defaults.yaml").write_text(LAUGHS)
    names = {"fit": {"default_config_files": [str(tmp_path / "defaults.yaml")]}}
    start = time.process_time()
    with pytest.raises((SystemExit, ValueError)):
        GluonCLI(BoringModel, args=["fit"], parser_kwargs=names)
    assert time.process_time() - start < 5
