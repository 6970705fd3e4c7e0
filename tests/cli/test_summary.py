"""The end of a fit, the comparison of runs, the progress bar, and what other libraries say."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gluon.__main__ import main
from lightning_gluon.cli.progress import StepProgressBar, batches_ahead
from lightning_gluon.cli.train import quiet_others

RECIPE = ["fit", "-c", "vit/base", "-c", "vit/tiny", "-c", "loggers/tensorboard", "-c", "methods/gluon"]
SMALL = ["--data.init_args.batch_size=400", "--trainer.enable_model_summary=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Fit with the overlays of monitor and export, five steps of an epoch of three."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["lightning-gluon"])
        overlays = ["-c", "callbacks/export", "-c", "callbacks/monitor"]
        often = ["--trainer.max_steps=7", "--trainer.max_epochs=9", "--trainer.log_every_n_steps=1"]
        main([*RECIPE, *SMALL, *overlays, *often, "--trainer.callbacks.every_n_steps=2"])
    return SimpleNamespace(folder=folder, version=folder / "runs" / "version_0")


def test_figures_are_in_the_event_file(run: SimpleNamespace) -> None:
    events = EventAccumulator(str(run.version))
    events.Reload()
    assert {"smoothness/hidden", "smoothness/head", "smoothness/radii"} <= set(events.Tags()["images"])
    (figure,) = events.Images("smoothness/hidden")
    assert figure.encoded_image_string[:4] == b"\x89PNG" and figure.width > 500
    assert "smoothness/L_hat/hidden" in events.Tags()["scalars"]


def test_the_best_model_is_exported(run: SimpleNamespace) -> None:
    assert (run.folder / "runs" / "best" / "model.safetensors").exists()


def test_summary_of_a_run(run: SimpleNamespace) -> None:
    facts = json.loads((run.version / "summary.json").read_text())
    assert facts["method"] == "gluon" and facts["lr"] == 0.02
    assert (facts["metric"], facts["is_best"]) == ("val/accuracy", True)
    assert facts["steps"] == facts["gradient_evaluations"] == 7
    assert facts["state_bytes"] == 808_744 and facts["seconds"] > 0
    assert Path(run.folder, facts["checkpoint"]).exists() and Path(run.folder, facts["folder"]) == run.version
    assert torch.load(run.folder / facts["checkpoint"], weights_only=True)["global_step"] <= 7


def test_runs_are_compared(run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    facts = json.loads((run.version / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({**facts, "method": "adamw", "gradient_evaluations": 14}))
    main(["compare", str(run.version), str(tmp_path)])
    printed = capsys.readouterr().out
    assert "gluon" in printed and "adamw" in printed and "different numbers of gradients" in printed
    main(["compare", str(run.version), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"run": run.version.as_posix(), **facts}


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"to hold runs of `lightning-gluon fit`, but there is no 'summary.json'"):
        main(["compare", str(tmp_path)])
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(SystemExit, match=r"to be a summary of `lightning-gluon fit`, but it is not one"):
        main(["compare", str(tmp_path)])


class Totals(Callback):
    """Keep what the bar counts to, and what it had counted at the end of each epoch."""

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.batches: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == 0:
            self.totals.append(trainer.progress_bar_callback.total_train_batches)
            self.batches.append(0)
        self.batches[-1] += 1


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 3), (1, 11), (3, 2), (3, 6), (3, 5), (1, -1)])
def test_the_bar_counts_to_the_last_batch_there_is(tmp_path: Path, accumulate: int, steps: int) -> None:
    """Eight batches an epoch, so that windows of three are cut by its end."""
    from lightning.pytorch import Trainer

    totals = Totals()
    trainer = Trainer(
        max_steps=steps, max_epochs=2, limit_train_batches=8, limit_val_batches=0, accumulate_grad_batches=accumulate,
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[StepProgressBar(), totals], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert totals.totals == totals.batches


def test_batches_after_a_resume_inside_an_epoch() -> None:
    progress = SimpleNamespace(current=SimpleNamespace(completed=6))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(restarting=True, batch_progress=progress))
    trainer = SimpleNamespace(
        fit_loop=loop, max_steps=5, global_step=3, accumulate_grad_batches=2, num_training_batches=40
    )
    assert batches_ahead(trainer) == 10
    loop.epoch_loop.restarting = False
    assert batches_ahead(trainer) == 4


def test_others_are_quiet_and_the_user_is_not(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_others()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another", FutureWarning, stacklevel=1)
        warnings.warn("my data are odd", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["my data are odd"]
    with caplog.at_level(logging.INFO, logger=logger.name):
        logger.info("Tip: try installing [litlogger]")
        logger.info("`Trainer.fit` stopped")
    assert [record.message for record in caplog.records] == ["`Trainer.fit` stopped"]
