"""Under Lightning's automatic optimization: clipping, accumulation, counts, monitors, resume, precision, averaging."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_gluon
from lightning_gluon.tasks.data.loader import ResumableLoader


class Module(L.LightningModule):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = {"lr": 0.02, **options}
        self.net = nn.Sequential(
            nn.Linear(10, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
        )
        self.lr = 0.02

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> object:
        return lightning_gluon.configure_optimizers(self, **self.options)


def loader(batch_size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 10, generator=generator)
    return ResumableLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size, shuffle=True)


def fit(tmp_path: Path, ckpt_path: str | None = None, callbacks: list | None = None, module: Module | None = None,
        options: dict | None = None, **trainer: object) -> tuple[L.Trainer, Module]:  # fmt: skip
    L.seed_everything(1, verbose=False)
    module = module or Module(**(options or {}))
    settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **trainer}
    runner = L.Trainer(
        default_root_dir=tmp_path,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    runner.fit(module, loader(), ckpt_path=ckpt_path)
    return runner, module


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_global_step_and_accumulation_count_optimizer_steps(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, accumulate_grad_batches=5)
    assert trainer.global_step == 3  # 12 batches: two full windows and a partial one
    assert trainer.optimizers[0].gradient_evaluations == 3


def test_accumulated_window_is_the_mean_gradient(tmp_path: Path) -> None:
    """A window of 4 equals one batch of four times the size, dropout aside."""
    nets = []
    for batches, size in ((4, 4), (1, 16)):
        L.seed_everything(1, verbose=False)
        module = Module(orthogonalizer="svd")
        module.net[1].p = 0.0
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=batches,
        )
        trainer.fit(module.double(), DataLoader([(x.double(), y) for x, y in loader().dataset], batch_size=size))
        nets.append(weights(module))
    assert (nets[0] - nets[1]).abs().max() < 1e-10


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_runs_in_front_of_the_momentum(tmp_path: Path, algorithm: str) -> None:
    class Watch(L.Callback):
        largest = 0.0

        def on_before_zero_grad(self, trainer: L.Trainer, module: L.LightningModule, optimizer: object) -> None:
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            if grads:
                norm = (
                    torch.stack([g.norm() for g in grads]).norm()
                    if algorithm == "norm"
                    else max(g.abs().max() for g in grads)
                )
                self.largest = max(self.largest, float(norm))

    watch = Watch()
    fit(tmp_path, callbacks=[watch], gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
    assert 0 < watch.largest <= 1.001e-3


def test_learning_rate_monitor_names_the_roles(tmp_path: Path) -> None:
    for options, prefix in (({}, "lr-Gluon"), ({"schedule": "cosine", "warmup": 0.25}, "gluon")):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*optimizers do not have momentum")
            trainer, _ = fit(tmp_path, options=options, logger=CSVLogger(tmp_path), log_every_n_steps=1,
                             callbacks=[LearningRateMonitor(log_momentum=True)])  # fmt: skip
        names = set(trainer.callback_metrics)
        assert {f"{prefix}/hidden", f"{prefix}/head", f"{prefix}/bias"} <= names


def test_schedule_takes_its_length_from_the_trainer(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, options={"schedule": "linear", "warmup": 0.25}, max_epochs=2, accumulate_grad_batches=2)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.schedule.total_steps, scheduler.schedule.warmup) == (12, 3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_schedules_go_on_when_a_group_is_added(tmp_path: Path) -> None:
    class Unfreezes(BaseFinetuning):
        def freeze_before_training(self, module: L.LightningModule) -> None:
            self.freeze(module.net[0])

        def finetune_function(self, module: L.LightningModule, epoch: int, optimizer: object) -> None:
            if epoch == 2:
                self.unfreeze_and_add_param_group(module.net[0], optimizer, initial_denom_lr=10.0)

    rates: list[list[float]] = []

    class Watch(L.Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, module: L.LightningModule, optimizer: object) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    fit(tmp_path, options={"schedule": "linear"}, callbacks=[Unfreezes(), Watch()], max_epochs=4)
    assert [len(row) for row in rates] == [3] * 24 + [5] * 24
    for step, row in enumerate(rates):
        share = (48 - step) / 48
        assert row == pytest.approx([0.02 * share] * 3 + [0.002 * share] * (len(row) - 3)), step


@pytest.mark.parametrize("method", ["gluon", "scion", "muon", "adamw", "mars-approximate"])
def test_resume_in_the_middle_of_an_epoch_is_bit_exact(tmp_path: Path, method: str) -> None:
    """Dropout is off: Lightning does not save its random stream."""
    results = []
    for checkpoint in (None, str(tmp_path / "step=5.ckpt")):
        L.seed_everything(1, verbose=False)
        module = Module(method=method, schedule="wsd", weight_decay=0.01)
        module.net[1].p = 0.0
        save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
        trainer, trained = fit(tmp_path, checkpoint, [save], module, max_epochs=2, enable_checkpointing=True)
        results.append(weights(trained))
        assert trainer.global_step == 24
    assert torch.equal(*results)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed", "64-true"])
def test_precisions(tmp_path: Path, precision: str) -> None:
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *_: object) -> None:
            losses.append(float(outputs["loss"]))

    if precision == "16-mixed":  # Lightning's plugin for the CPU: the closure runs outside step()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        from lightning.pytorch.plugins import MixedPrecision

        trainer, module = fit(tmp_path, callbacks=[Losses()], max_epochs=4,
                              plugins=[MixedPrecision("16-mixed", "cpu", scaler)])  # fmt: skip
    else:
        trainer, module = fit(tmp_path, callbacks=[Losses()], precision=precision, max_epochs=4)
    assert torch.isfinite(weights(module)).all()
    assert sum(losses[-12:]) < sum(losses[:12])
    expected = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert {p.dtype for p in module.parameters()} == {expected}
    group = trainer.optimizers[0].param_groups[0]
    assert group["noise_floor"] == {"bf16-mixed": 2**-6, "16-mixed": 2**-9}.get(precision)


def test_weight_averaging_sees_every_step(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, callbacks=[EMAWeightAveraging(decay=0.5)], max_epochs=2)
    plain_trainer, plain = fit(tmp_path, max_epochs=2)
    assert trainer.global_step == plain_trainer.global_step
    assert not torch.equal(weights(module), weights(plain))


def test_learning_rate_finder_runs_and_restores(tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    class Tunable(Module):
        def configure_optimizers(self) -> object:
            return lightning_gluon.configure_optimizers(self, lr=self.lr)

    L.seed_everything(1, verbose=False)
    module = Tunable()
    before = weights(module).clone()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    finder = Tuner(trainer).lr_find(module, loader(), num_training=8, update_attr=False)
    assert len(finder.results["loss"]) >= 6 and max(finder.results["lr"]) > min(finder.results["lr"])
    assert torch.equal(weights(module), before)


def test_every_method_trains_under_the_trainer(tmp_path: Path) -> None:
    for method in ("signsgd", "normalized-sgd", "mars-approximate", "adamw"):
        lr = {"signsgd": 0.002, "adamw": 0.01, "mars-approximate": 0.02}.get(method, 0.1)
        trainer, _ = fit(tmp_path, options={"method": method, "lr": lr}, max_epochs=3)
        assert float(trainer.callback_metrics["loss"]) < 1.2, method


def test_folded_second_gradients_under_accumulation(tmp_path: Path) -> None:
    """One buffer for both gradients gives the weights of two buffers, up to the rounding of their sum."""
    results = []
    for fold in (False, True):
        options = {"method": "limuon", "fold": fold, "orthogonalizer": "svd", "radius": {"head": 0.0}}
        trainer, module = fit(tmp_path, options=options, accumulate_grad_batches=2, precision="64-true")
        assert trainer.optimizers[0].gradient_evaluations == 2 * 6 - 1
        results.append(weights(module))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="no `gradient_clip_val` with `fold`"):
        fit(tmp_path, options={"method": "limuon", "fold": True}, gradient_clip_val=1.0)
