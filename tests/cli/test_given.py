"""What a command line and its files give."""

from __future__ import annotations

from pathlib import Path

from lightning_gluon.cli.given import Given

TEXT = """
model: {class_path: torch.nn.Linear, init_args: {in_features: 2}}
trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {monitor: loss}}]}
"""


def test_later_values_replace_those_of_files(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(TEXT)
    given = Given.read(["fit", "-c", str(tmp_path / "base.yaml"), "--model", "torch.nn.Bilinear", "--seed=3"])
    assert given.values["model.class_path"] == "torch.nn.Bilinear"
    assert given.values["seed"] == "3"
    assert given.find("monitor") == ["trainer.callbacks.0.init_args.monitor"]
    assert given.owner("trainer.callbacks.0.init_args.monitor") == "ModelCheckpoint"
    assert "monitor" in given.parameters("trainer.callbacks.0.init_args.monitor")


def test_what_a_class_needs_and_nobody_gives() -> None:
    given = Given({"model.class_path": "torch.nn.Linear"})
    assert given.lacking("out_features") == "model.init_args.out_features"
    assert given.lacking("bias") is None
    assert given.parameters("model.init_args.x", required=True) == ["in_features", "out_features"]


def test_unknown_classes_have_no_arguments() -> None:
    given = Given({"model.class_path": "no.such.Class", "data.class_path": "Nope"})
    assert given.parameters("model.x") == given.parameters("data.x") == given.parameters("trainer.x") == []
