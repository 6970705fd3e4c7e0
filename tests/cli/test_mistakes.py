"""One line per mistake, which names the key and what it could have been."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_gluon.__main__ import main
from lightning_gluon.cli.given import Given
from lightning_gluon.cli.keys import Keys
from lightning_gluon.cli.mistakes import explain
from tests.cli._boring import boring

BASE = {
    "model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"},
    "data": {"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"},
    "trainer": {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False},
    "optimizer": {"method": "gluon", "lr": 0.02},
}
MODULE = """
from lightning.pytorch.demos.boring_classes import BoringModel

class Net(BoringModel):
    def __init__(self, width: int, act: str = "relu"):
        super().__init__()
        self.entry = [1, 2][width]

class NoModule:
    pass
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and modules of a user, which one stands in."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "mistaken_net.py").write_text(MODULE)
    (tmp_path / "mistaken_import.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "mistaken_syntax.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that has to fail before its first batch, and return the one line of its mistake."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code != 0
    printed = capsys.readouterr().err.splitlines() if isinstance(end.value.code, int) else [str(end.value.code)]
    told = [text for text in printed if "error: " in text]
    assert len(told) == 1 and "\n" not in told[0] and not [text for text in printed if text.startswith("usage")]
    return told[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max_epochs 3", "Unknown option `--max_epochs`. Did you mean `--trainer.max_epochs`?"),
        ("--trainer.max_epochz=3", "Did you mean `--trainer.max_epochs`?"),
        ("--lr 0.1", "Did you mean `--optimizer.lr`?"),
        ("--optimzer.lr 0.1", "Did you mean `--optimizer.lr`?"),
        ("--optimizer.rnk 4", "Did you mean `--optimizer.rank`?"),
        ("--optimizer.zzz 4", "Keys of `optimizer`: method, lr, weight_decay"),
        ("--optimizer gluon", "Expected a section: `--optimizer.method NAME --optimizer.lr NUMBER`"),
        ("--trainer no.yaml", "Expected `trainer` to be a YAML file, or keys such as `--trainer.KEY VALUE`"),
        ("--trainer.max_epochs x", "Expected `trainer.max_epochs` to be one of: int, null; but got 'x'."),
        ("--trainer.max_steps x", "Expected `trainer.max_steps` to be int, but got 'x'."),
        ("--trainer.precision 17", "Expected `trainer.precision` to be one of: 64, 32, 16, "),
        ("--trainer.accelerator gpux", "invalid accelerator name: `accelerator='gpux'`"),
        ("--trainer.callbacks Nope", "but got 'Nope'. Give a class path such as package.module.Class."),
        ("--optimizer.lr abc", "Expected `optimizer.lr` to be one of: float, 'auto', null; but got 'abc'."),
        ("--optimizer.betas [1,2,3]", "Expected `optimizer.betas` to be one of: tuple[float, float], null;"),
        ("--optimizer.method muom", "but got 'muom'. Did you mean `muon`?"),
        ("--optimizer.rank 4", "Unknown option `rank` for method 'gluon'."),
        ("--optimizer.rules {layer.weight:hiden}", "Expected `optimizer.rules` to be one of: dict"),
        ("--seed_everything x", "Expected `seed_everything` to be one of: bool, int; but got 'x'."),
        ("--ckpt_path no.ckpt", "no.ckpt"),
        ("--ckpt_path", "Expected a value after `--ckpt_path`."),
        ("extra", "Expected options such as `--trainer.max_epochs 3`, but got 'extra'."),
        ("--model no_such_module.Net", "There is no module 'no_such_module': install its package, or run in"),
        ("--model mistaken_import.Net", "Importing mistaken_import.Net failed, since there is no module 'no_such_pack"),
        ("--model mistaken_syntax.Net", "invalid syntax (mistaken_syntax.py, line 1)"),
        ("--model mistaken_net.Nope", "module 'mistaken_net' has no attribute 'Nope'"),
        ("--model mistaken_net.NoModule", "Expected `model` to be one of: LightningModule, null;"),
        ("--model Nope", "Give a class path such as package.module.Class."),
        ("--model mistaken_net.Net", "Missing `model.init_args.width`: mistaken_net.Net needs it."),
        ("--model mistaken_net.Net --model.width x", "Expected `model.width` to be int, but got 'x'."),
        ("--model mistaken_net.Net --model.width 7", "IndexError: list index out of range (mistaken_net.py:7)"),
        ("--model mistaken_net.Net --model.with 7", "mistaken_net.Net has no argument `with`. Did you mean `width`?"),
        ("--model.lr 0.1", "BoringModel has no argument `lr`. Its arguments: none. There is `optimizer.lr`."),
        ("--data.batch 3", "Unknown key `data.batch`: lightning.pytorch.demos.boring_classes.BoringDataModule has no"),
    ],
)
def test_mistakes_of_the_command_line(
    project: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert message in line(capsys, ["fit", "-c", "base.yaml", *options.split()])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {rnk: 4}", "Unknown key `optimizer.rnk`. Did you mean `optimizer.rank`?"),
        ("trainer: {max_epoch: 3}", "Unknown key `trainer.max_epoch`. Did you mean `trainer.max_epochs`?"),
        ("trainr: {max_epochs: 3}", "Unknown key `trainr.max_epochs`. Did you mean `trainer.max_epochs`?"),
        ("max_epochs: 3", "Unknown key `max_epochs`. Did you mean `trainer.max_epochs`?"),
        ("trainer: {callbacks: [{class_path: Nope}]}", "Expected `trainer.callbacks` to be one of: list[Callback],"),
        (
            "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {montor: x}}]}",
            "Unknown key `trainer.callbacks.0.init_args.montor`: ModelCheckpoint has no argument `montor`. Did you "
            "mean `monitor`?",
        ),
        (
            "model: {class_path: mistaken_net.Net, init_args: {width: 1, foo: 3}}",
            "Unknown key `model.init_args.foo`: mistaken_net.Net has no argument `foo`. Its arguments: width, act.",
        ),
        (
            "model: {class_path: mistaken_net.Net, init_args: {width: x}}",
            "Expected `model.init_args.width` to be int, but got 'x'.",
        ),
    ],
)
def test_mistakes_of_a_file(project: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (project / "more.yaml").write_text(text)
    assert message in line(capsys, ["fit", "-c", "base.yaml", "-c", "more.yaml"])


def test_a_command_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Missing `model`. Give it by `--model VALUE`" in line(capsys, ["fit"])


def test_an_error_of_a_running_model_keeps_its_traceback(project: Path) -> None:
    lines = ["from mistaken_net import BoringModel", "class Late(BoringModel):"]
    lines += ["    def training_step(self, batch, index):", "        raise KeyError('late')"]
    (project / "late_error.py").write_text("\n".join(lines))
    with pytest.raises(KeyError, match="late"):
        main(["fit", "-c", "base.yaml", "--model", "late_error.Late"])


def test_the_cli_of_a_users_script_exits_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        boring(tmp_path, "fit", "--optimizer.rnk=4")
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_text_loses_its_line_breaks_only() -> None:
    assert explain("some\n  other   text", Keys(Given(), [])) == "some other text"
