"""The callback that knows whether a run has begun."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_gluon.cli.first_batch import FirstBatch


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_command_notes_its_first_batch(tmp_path: Path, command: str) -> None:
    first = FirstBatch()
    trainer = Trainer(
        callbacks=[first], fast_dev_run=True, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False
    )
    assert not first.seen
    getattr(trainer, command)(BoringModel())
    assert first.seen
