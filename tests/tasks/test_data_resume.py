"""A run that an exception ends, resumed from the checkpoint written then, is the run that was never interrupted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import OnExceptionCheckpoint

import lightning_gluon
from lightning_gluon.cli.count_epochs import CountEpochs
from lightning_gluon.tasks import ImageData, ResumableLoader

BATCHES, EPOCHS = 5, 3
STEPS = BATCHES * EPOCHS


class Crash(Callback):
    """Raise in a hook when a step comes."""

    def __init__(self, hook: str, step: int, error: BaseException) -> None:
        self.step, self.error = step, error
        setattr(self, hook, self.fail)

    def fail(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


class Net(LightningModule):
    """A layer that remembers the batches it was stepped on."""

    def __init__(self, method: str) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Linear(16, 10))
        self.method = method
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        self.seen.append(labels.tolist())
        return torch.nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> Any:
        if self.method == "torch-sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return lightning_gluon.configure_optimizers(self, self.method, lr=0.02, schedule="cosine")


def fit(folder: Path, method: str, *callbacks: Callback, workers: int = 0, **kwargs: Any) -> Net:
    """Train on three epochs of five batches, or go on from a checkpoint."""
    net = Net(method)
    ckpt_path = kwargs.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[CountEpochs(), OnExceptionCheckpoint(folder), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **kwargs,
    )
    data = ImageData(batch_size=4, limit=21, crop_padding=1, flip=True, seed=0, num_workers=workers)
    trainer.fit(net, datamodule=data, ckpt_path=ckpt_path)
    assert trainer.global_step == STEPS
    return net


def same(first: Net, second: Net) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def crash_and_resume(folder: Path, method: str, crash: Crash, **kwargs: Any) -> Net:
    """Train until the crash, then go on from the checkpoint that was written on it."""
    with pytest.raises((type(crash.error), SystemExit)):  # Lightning turns Ctrl-C into an exit
        fit(folder, method, crash, **kwargs)
    return fit(folder, method, ckpt_path=folder / "on_exception.ckpt", **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Net]:
    """Return the run of a method that is never interrupted."""
    return cache(lambda method: fit(tmp_path_factory.mktemp("whole"), method))


@pytest.mark.parametrize("step", [0, 3, 4, 5, 7, STEPS - 1])
@pytest.mark.parametrize("method", ["torch-sgd", "gluon"])
def test_a_batch_that_failed_comes_again(tmp_path: Path, whole: Callable[[str], Net], method: str, step: int) -> None:
    resumed = crash_and_resume(tmp_path, method, Crash("on_before_backward", step, RuntimeError("boom")))
    assert resumed.seen == whole(method).seen[step:]
    assert same(resumed, whole(method))


@pytest.mark.parametrize(
    "hook", ["on_train_batch_start", "on_before_zero_grad", "on_before_optimizer_step", "on_train_batch_end"]
)
@pytest.mark.parametrize("step", [BATCHES, 7])
def test_wherever_a_step_fails(tmp_path: Path, whole: Callable[[str], Net], hook: str, step: int) -> None:
    resumed = crash_and_resume(tmp_path, "torch-sgd", Crash(hook, step, RuntimeError("boom")))
    assert resumed.seen == whole("torch-sgd").seen[step:]
    assert same(resumed, whole("torch-sgd"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=["Ctrl-C", "exit"])
def test_whatever_ends_the_run(tmp_path: Path, whole: Callable[[str], Net], error: BaseException) -> None:
    resumed = crash_and_resume(tmp_path, "torch-sgd", Crash("on_before_backward", 7, error))
    assert same(resumed, whole("torch-sgd"))


def test_batches_that_workers_have_fetched_ahead_come_again(tmp_path: Path, whole: Callable[[str], Net]) -> None:
    crash = Crash("on_before_backward", 7, RuntimeError("boom"))
    resumed = crash_and_resume(tmp_path, "torch-sgd", crash, workers=1)
    assert resumed.seen == whole("torch-sgd").seen[7:]


def test_a_resumed_run_that_fails_at_once_resumes_again(tmp_path: Path, whole: Callable[[str], Net]) -> None:
    saved = tmp_path / "on_exception.ckpt"
    for hook in ("on_before_backward", "on_train_start"):
        crash = Crash(hook, 7, RuntimeError("boom"))
        with pytest.raises(RuntimeError, match="boom"):
            fit(tmp_path, "torch-sgd", crash, ckpt_path=saved if saved.exists() else None)
    resumed = fit(tmp_path, "torch-sgd", ckpt_path=saved)
    assert resumed.seen == whole("torch-sgd").seen[7:]
    assert same(resumed, whole("torch-sgd"))


def test_a_loader_without_a_data_module_follows_the_trainer(tmp_path: Path) -> None:
    def run(*callbacks: Callback, ckpt_path: Path | None = None) -> Net:
        net = Net("torch-sgd")
        trainer = Trainer(accelerator="cpu", max_epochs=EPOCHS, logger=False, callbacks=[CountEpochs(), *callbacks])
        samples = [(torch.randn(64, generator=torch.Generator().manual_seed(i)), i % 10) for i in range(21)]
        trainer.fit(net, ResumableLoader(samples, batch_size=4).follow(trainer), ckpt_path=ckpt_path)
        return net

    whole = run()
    with pytest.raises(RuntimeError, match="boom"):
        run(Crash("on_before_backward", 7, RuntimeError("boom")), OnExceptionCheckpoint(tmp_path))
    resumed = run(ckpt_path=tmp_path / "on_exception.ckpt")
    assert resumed.seen == whole.seen[7:]
    assert same(resumed, whole)


def test_a_new_epoch_has_no_batches_done() -> None:
    loader = ResumableLoader(range(6), batch_size=2, seed=0)
    assert len(list(loader)) == 3
    loader.sampler.set_epoch(1)  # announced, and not begun
    assert loader.state_dict() == {"epoch": 1, "batches": 0}
