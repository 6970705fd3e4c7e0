from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from lightning_gluon import Gluon, configure_optimizers
from lightning_gluon.callbacks import RadiusScheduler, SmoothnessMonitor
from lightning_gluon.smoothness import plots
from lightning_gluon.smoothness.readings import FIT_KEYS, READINGS
from lightning_gluon.smoothness.sample_file import SampleFile
from tests._two_point import FLAT, Memory, Net, data, differing, fit, gluon, state, trainer

METHODS = ("gluon", "muon", "gluon-mvr1", "gluon-igt", "adamw")


def train(monitor: SmoothnessMonitor | None, method: str = "gluon", **options):
    torch.manual_seed(1)
    model = Net(method=method)
    runner = fit(model, max_epochs=2, callbacks=[monitor] if monitor else [], **options)
    return model, runner


def everything(model, runner) -> dict[str, torch.Tensor]:
    random = {"rng": torch.get_rng_state(), "seen": torch.tensor(model.seen), "outputs": torch.stack(model.outputs)}
    metrics = {f"metric.{k}": torch.as_tensor(v) for k, v in runner.callback_metrics.items() if "/" not in k}
    return {**state(model, gluon(runner)), **random, **metrics}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}], ids=["sums", "bf16"])
def test_monitored_run_is_the_unmonitored_run_bit_for_bit(tmp_path, method, options):
    # Dropout, batch norm, metrics, logs, counters: `Net` has everything that a second pass could disturb.
    monitor = SmoothnessMonitor(every_n_steps=1)
    plain = everything(*train(None, method, default_root_dir=tmp_path, **options))
    watched = everything(*train(monitor, method, default_root_dir=tmp_path, **options))
    assert not differing(plain, watched)
    samples = plots.read_samples(tmp_path)
    assert len({sample["step"] for sample in samples}) >= 4
    assert all(sample["L_hat"] is not None for sample in samples if sample["update_norm"] > 0)


class Linear(pl.LightningModule):
    """mean (W x - y)^2 / 2 on the whole data: gradients and their differences in closed form."""

    def __init__(self, method: str = "gluon") -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)
        self.method, self.weights = method, []

    def training_step(self, batch, batch_idx):
        self.weights.append(self.layer.weight.detach().clone())
        return (self.layer(batch[0]) - batch[0][:, :3]).square().sum() / (2 * len(batch[0]))

    def configure_optimizers(self):
        return configure_optimizers(self, method=self.method, lr=0.1, **FLAT)


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_estimates_equal_the_closed_form(tmp_path, method):
    model = Linear(method)
    fit(model, callbacks=[SmoothnessMonitor(every_n_steps=1)], default_root_dir=tmp_path, max_epochs=1)
    layer = Gluon(nn.Linear(4, 3, bias=False), lr=0.1).layers()[0]
    x = data().tensors[0].view(7, 4, 4)
    samples = [sample for sample in plots.read_samples(tmp_path) if sample["layer"]]
    steps = model.weights  # without those of the second passes, which leave nothing behind
    assert [sample["step"] for sample in samples] == [1, 2, 3, 4, 5, 6]
    for sample in samples:
        k = sample["step"]
        step = steps[k] - steps[k - 1]
        same = layer.dual_norm(step @ x[k].mT @ x[k] / 4)
        assert sample["update_norm"] == pytest.approx(float(layer.norm(step)), rel=1e-4)
        assert sample["L_hat"] == pytest.approx(float(same / layer.norm(step)), rel=1e-3)
        gradients = [(steps[j] @ x[j].mT - x[j].mT[:3]) @ x[j] / 4 for j in (k - 1, k)]
        different = layer.dual_norm(gradients[1] - gradients[0])
        assert sample["L_trajectory"] == pytest.approx(float(different / layer.norm(step)), rel=1e-3)
        agreement = -float((gradients[1] * step).sum() / layer.norm(step))
        assert sample["agreement"] == pytest.approx(agreement, rel=1e-3, abs=1e-4)


def test_keys_files_and_times(tmp_path):
    memory, csv = Memory(), CSVLogger(tmp_path, name="run")
    monitor = SmoothnessMonitor(every_n_steps=2, layers=["hidden", "last.*"], per_layer=True)
    train(monitor, logger=[csv, memory], log_every_n_steps=4)
    rows = {step: row for step, row in memory.rows if any(key.startswith("smoothness/") for key in row)}
    assert set(rows) == {3, 7, 11}  # every_n_steps samples at 1, 3, 5, ...; Lightning logs at 3, 7, 11
    expected = {f"smoothness/{key}/{name}" for key in (*READINGS, *FIT_KEYS) for name in ("hidden", "last.weight")}
    assert expected <= set(rows[7])
    assert not any("first" in key for key in rows[7] if key.endswith("bias"))
    lines = [json.loads(line) for line in monitor.path.read_text().splitlines()]
    assert monitor.path.parent == Path(csv.log_dir)
    assert sorted({line["step"] for line in lines}) == [1, 3, 5, 7, 9, 11, 13]
    assert {line["layer"] for line in lines if line["role"] == "bias"} == {None, "last.bias"}
    assert set(lines[0]) == {"step", "role", "layer", "radius", *READINGS, *FIT_KEYS}
    assert rows[7]["smoothness/L_hat/hidden"] == next(line["L_hat"] for line in lines if line["step"] == 7)


def test_resumed_run_continues_samples_and_fits(tmp_path):
    def run(folder, epochs, path=None):
        torch.manual_seed(1)
        saver = ModelCheckpoint(tmp_path / folder, every_n_train_steps=5, save_top_k=-1, filename="{step}")
        monitor = SmoothnessMonitor(every_n_steps=3)
        options = {"callbacks": [monitor, saver], "enable_checkpointing": True, "default_root_dir": tmp_path / folder}
        model = Net(dropout=0.0, method="gluon")  # Lightning does not save the random state
        runner = fit(model, max_epochs=epochs, ckpt_path=path, **options)
        return model, runner, monitor

    whole = run("one", 2)
    # Step 5 lies between the copy (before step 5) and the sample it is for: the copies are in the checkpoint.
    again = run("one_resumed", 2, tmp_path / "one" / "step=5.ckpt")
    assert not differing(state(whole[0], gluon(whole[1])), state(again[0], gluon(again[1])))
    assert whole[2].state_dict()["fits"] == again[2].state_dict()["fits"]
    torch.load(tmp_path / "one" / "step=5.ckpt", weights_only=True)
    first, second = (plots.read_samples(tmp_path / name) for name in ("one", "one_resumed"))
    assert [s for s in first if s["step"] >= 5] == second
    # In the same folder the file is continued, without the samples that are taken again.
    run("one", 2, tmp_path / "one" / "step=5.ckpt")
    assert plots.read_samples(tmp_path / "one") == first


def test_a_new_run_never_overwrites_samples(tmp_path):
    for _ in range(2):
        train(SmoothnessMonitor(every_n_steps=2), default_root_dir=tmp_path)
    assert {file.name for file in tmp_path.glob("*.jsonl")} == {"smoothness.jsonl", "smoothness_2.jsonl"}


def test_two_monitors_write_two_files_and_resume_in_them(tmp_path):
    def run(epochs, path=None):
        monitors = [SmoothnessMonitor(every_n_steps=2, layers=role, figures=True) for role in ("hidden", "head")]
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
        options = {"callbacks": [*monitors, saver], "enable_checkpointing": True, "default_root_dir": tmp_path}
        fit(Net(method="gluon"), max_epochs=epochs, ckpt_path=path, **options)
        return [plots.read_samples(monitor.path) for monitor in monitors]

    run(1)
    (tmp_path / "smoothness_radii.png").unlink()
    samples = run(2, tmp_path / "step=5.ckpt")
    assert {file.name for file in tmp_path.glob("*radii.png")} == {"smoothness_radii.png", "smoothness_2_radii.png"}
    assert {file.name for file in tmp_path.glob("*.jsonl")} == {"smoothness.jsonl", "smoothness_2.jsonl"}
    assert [{sample["role"] for sample in some} for some in samples] == [{"hidden"}, {"head"}]
    for some in samples:
        assert [sample["step"] for sample in some if sample["layer"] is None] == [1, 3, 5, 7, 9, 11, 13]


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=5, filename="{step}")
    train(SmoothnessMonitor(every_n_steps=2), default_root_dir=tmp_path)
    whole = plots.read_samples(tmp_path)
    (tmp_path / "smoothness.jsonl").unlink()
    callbacks, options = [saver], {"enable_checkpointing": True, "default_root_dir": tmp_path}
    torch.manual_seed(1)
    fit(Net(method="gluon"), callbacks=[SmoothnessMonitor(every_n_steps=2), *callbacks], max_epochs=1, **options)
    file = tmp_path / "smoothness.jsonl"
    file.write_text(file.read_text() + '\n{"step": 7, "role": "hid')
    assert [sample["step"] for sample in plots.read_samples(tmp_path) if sample["layer"] is None][-1] == 5
    monitor = SmoothnessMonitor(every_n_steps=2)
    fit(Net(method="gluon"), callbacks=[monitor], max_epochs=2, ckpt_path=tmp_path / "step=5.ckpt", **options)
    key = lambda sample: (sample["step"], sample["role"], sample["layer"])  # noqa: E731
    assert [key(sample) for sample in plots.read_samples(monitor.path)] == [key(sample) for sample in whole]
    assert monitor.path == file


def test_layers_that_are_unfrozen_later_are_measured(tmp_path):
    class Unfreeze(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.inner)

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.inner, optimizer)

    monitor, scheduler = SmoothnessMonitor(every_n_steps=2), RadiusScheduler("smoothness", every_n_steps=1)
    options = {"default_root_dir": tmp_path, "max_epochs": 2}
    runner = fit(Net(method="gluon"), callbacks=[Unfreeze(), monitor, scheduler], **options)
    samples = [sample for sample in plots.read_samples(tmp_path) if sample["layer"] == "inner.linear.weight"]
    assert [sample["step"] for sample in samples] == [9, 11, 13]  # of 14 steps, from the second after the 7th on
    assert all(sample["L_hat"] > 0 for sample in samples)
    added = [group for group in gluon(runner).param_groups if "inner.linear.weight" in group["param_names"]]
    assert added[0]["radius"] != scheduler.control.base[added[0]["name"]]


def test_other_callbacks_can_watch_the_readings(tmp_path):
    stop = EarlyStopping("smoothness/L_hat/hidden", check_on_train_epoch_end=True)
    best = ModelCheckpoint(tmp_path, monitor="smoothness/L1/head", filename="{smoothness/L1/head:.3f}")
    options = {"logger": Memory(), "enable_checkpointing": True, "default_root_dir": tmp_path}
    monitor = SmoothnessMonitor(every_n_steps=2)
    fit(Net(method="gluon"), callbacks=[monitor, stop, best], max_epochs=2, **options)
    assert stop.best_score > 0
    assert best.best_model_score > 0


def test_of_several_optimizers_the_first_is_measured(tmp_path):
    class Two(Linear):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.other = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            for optimizer, layer in zip(self.optimizers(), (self.layer, self.other), strict=True):
                optimizer.zero_grad()
                self.manual_backward(layer(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return [Gluon(layer, lr=0.1) for layer in (self.layer, self.other)]

    monitor = SmoothnessMonitor(every_n_steps=2, same_sample=False)
    with pytest.warns(UserWarning, match="has 2 optimizers of `lightning_gluon`: only the first is measured"):
        fit(Two(), callbacks=[monitor], default_root_dir=tmp_path)
    assert {sample["step"] for sample in plots.read_samples(tmp_path)} == {1, 3, 5}


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_manual_optimization_keeps_the_trajectory_estimate(tmp_path, method):
    class Manual(Linear):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer, again = self.optimizers(), super().training_step

            def closure():
                optimizer.zero_grad()
                self.manual_backward(again(batch, batch_idx))

            optimizer.step(closure)

    with pytest.warns(UserWarning, match="cannot repeat a training step under manual optimization"):
        fit(Manual(method), callbacks=[SmoothnessMonitor(every_n_steps=1)], default_root_dir=tmp_path)
    samples = plots.read_samples(tmp_path)
    assert all(sample["L_trajectory"] > 0 and sample["L_hat"] is None for sample in samples)


def test_a_step_that_draws_its_batch_is_not_repeated(tmp_path):
    class Draws(Linear):
        seen = 0

        def training_step(self, dataloader_iter):
            self.seen += 1
            return super().training_step(next(dataloader_iter)[0], 0)

    model = Draws()
    with pytest.warns(UserWarning, match="nor one that draws its own batch"):
        fit(model, callbacks=[SmoothnessMonitor(every_n_steps=1)], default_root_dir=tmp_path)
    assert model.seen == 7
    assert all(sample["L_hat"] is None for sample in plots.read_samples(tmp_path))


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_overflowing_steps_are_passed_over(tmp_path, method):
    class Overflows(Linear):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx in (0, 3) else 1)

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
    monitor = SmoothnessMonitor(every_n_steps=1)
    fit(Overflows(method), callbacks=[monitor], default_root_dir=tmp_path, plugins=[plugin])
    samples = plots.read_samples(tmp_path)
    assert sorted({sample["step"] for sample in samples}) == [1, 2, 4, 5, 6]
    assert all(sample["L_trajectory"] is None for sample in samples if sample["step"] in (1, 4))


def test_pytorch_lightning_trainer(tmp_path):
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return Gluon(self, lr=0.1)

    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    callbacks = [SmoothnessMonitor(every_n_steps=1)]
    runner = other.Trainer(accelerator="cpu", max_steps=4, callbacks=callbacks, default_root_dir=tmp_path, **quiet)
    runner.fit(Module(), torch.utils.data.DataLoader(data(), batch_size=4))
    assert {sample["step"] for sample in plots.read_samples(tmp_path)} == {1, 2, 3}


def test_a_learning_rate_may_be_a_tensor(tmp_path):
    class Compilable(Linear):
        def configure_optimizers(self):
            return Gluon(self, lr=torch.tensor(0.5))

    fit(Compilable(), callbacks=[SmoothnessMonitor(every_n_steps=2)], default_root_dir=tmp_path)
    assert {sample["radius"] for sample in plots.read_samples(tmp_path)} == {0.5}


def test_nothing_is_left_behind(tmp_path):
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            if self.seen > 8:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    runner = trainer(callbacks=[SmoothnessMonitor(every_n_steps=1)], default_root_dir=tmp_path)
    with pytest.raises(ZeroDivisionError):
        runner.fit(Broken(method="gluon"), torch.utils.data.DataLoader(data(), batch_size=4))
    assert "training_step" not in vars(runner.strategy)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ({"layers": ["hidden", "block.*"]}, {}, ValueError, "'block.\\*' matches none. There are roles hidden, head"),
        ({"layers": []}, {}, ValueError, "Expected `layers` to be names, shell patterns or roles"),
        ({"log": True}, {}, ValueError, r"`SmoothnessMonitor\(log=True\)` needs a logger, but the Trainer has none"),
    ],
)
def test_start_refuses(tmp_path, arguments, options, error, message):
    with pytest.raises(error, match=message):
        train(SmoothnessMonitor(**arguments), default_root_dir=tmp_path, **options)


def test_constructor_and_optimizer_are_checked(tmp_path):
    with pytest.raises(ValueError, match="`every_n_steps` to be a whole number >= 1, but got 0"):
        SmoothnessMonitor(every_n_steps=0)
    with pytest.raises(ValueError, match="`window` to be a whole number >= 2, but got 1"):
        SmoothnessMonitor(window=1)
    with pytest.raises(ValueError, match=r"a whole number >= 2, but got 2\.5"):
        SmoothnessMonitor(window=2.5)
    with pytest.raises(ValueError, match=r"`penalty` to satisfy 0 <= penalty.*but got -1\.0"):
        SmoothnessMonitor(penalty=-1.0)
    with pytest.raises(ValueError, match="`figures=True` draws the samples that `save=True` writes"):
        SmoothnessMonitor(figures=True, save=False)

    class Foreign(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(TypeError, match="optimizer of `lightning_gluon`, whose layers know their norm, but got SGD"):
        fit(Foreign(), callbacks=[SmoothnessMonitor()], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="With `fold` both gradients lie mixed"):
        fit(Net(method="gluon-mvr1", fold=True), callbacks=[SmoothnessMonitor()], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="nothing to plot: no sample was written"):
        SmoothnessMonitor().plot()


# ---------------------------------------------------------------- pictures


def test_pictures(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run")
    monitor = SmoothnessMonitor(every_n_steps=1, figures=True)
    train(monitor, logger=logger)
    folder = Path(logger.log_dir)
    names = {"smoothness_hidden.png", "smoothness_head.png", "smoothness_depth.png", "smoothness_radii.png"}
    assert names <= {file.name for file in folder.glob("*.png")}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    assert {"smoothness/hidden", "smoothness/depth", "smoothness/radii"} <= set(events.Tags()["images"])


def test_nothing_to_draw_is_no_error_at_the_end_of_a_training(tmp_path):
    with pytest.warns(UserWarning, match="nothing to draw: training ended before the first sample"):
        train(SmoothnessMonitor(every_n_steps=50, figures=True), default_root_dir=tmp_path)
    train(SmoothnessMonitor(every_n_steps=1, figures=True), default_root_dir=tmp_path, fast_dev_run=3)
    assert not list(tmp_path.glob("smoothness*"))


def test_drawing_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = Net(method="gluon")
    with pytest.raises(ImportError, match="Expected `matplotlib` to be installed"):  # not after the training
        fit(model, callbacks=[SmoothnessMonitor(figures=True)], default_root_dir=tmp_path)
    assert model.seen == 0


# ---------------------------------------------------------------- a monitor never ends a run


def plain_end(**options) -> torch.Tensor:
    return train(None, **options)[0].last.weight.detach()


@pytest.mark.parametrize("kind", ["no folder", "no space"])
def test_a_file_that_cannot_be_written_does_not_end_the_training(tmp_path, monkeypatch, kind):
    folder, memory = tmp_path / "run", Memory()
    if kind == "no folder":
        folder.write_text("a file is in the way")
    else:
        real = Path.open

        def full(path, *given, **options):
            if path.suffix == ".jsonl":
                raise OSError(28, "No space left on device")
            return real(path, *given, **options)

        monkeypatch.setattr(SampleFile, "_begin", lambda *_: None)
        monkeypatch.setattr(Path, "open", full)
    with pytest.warns(UserWarning, match="Samples of the smoothness cannot be written") as caught:
        model, _ = train(SmoothnessMonitor(every_n_steps=2), default_root_dir=folder, logger=memory)
    assert sum("cannot be written" in str(warning.message) for warning in caught) == 1
    assert any("smoothness/L_hat/hidden" in row for _, row in memory.rows)
    assert torch.equal(model.last.weight, plain_end(logger=Memory(), default_root_dir=tmp_path / "plain"))


def test_pictures_that_cannot_be_saved_do_not_end_the_training(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "save", full)
    with pytest.warns(UserWarning, match="could not save its pictures: .*No space left"):
        train(SmoothnessMonitor(every_n_steps=2, figures=True), default_root_dir=tmp_path)


def test_a_decomposition_that_fails_leaves_one_sample_out(tmp_path, monkeypatch):
    from lightning_gluon.callbacks import smoothness_monitor

    count, real = [0], smoothness_monitor.measure

    def fails(pairs, **options):
        count[0] += 1
        if count[0] in {2, 3}:
            raise torch.linalg.LinAlgError("did not converge")
        return real(pairs, **options)

    monkeypatch.setattr(smoothness_monitor, "measure", fails)
    with pytest.warns(UserWarning, match="at step 3 is left out: did not converge") as caught:
        train(SmoothnessMonitor(every_n_steps=2), default_root_dir=tmp_path)
    assert sum("left out" in str(warning.message) for warning in caught) == 1
    assert {sample["step"] for sample in plots.read_samples(tmp_path)} == {1, 7, 9, 11, 13}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../../outside.jsonl"}, "`file` in the saved state of `SmoothnessMonitor` to be a name such as"),
        ({"file": "/outside.jsonl"}, "but got '/outside.jsonl'"),
        ({"steps": -1}, "`steps` in the saved state of `SmoothnessMonitor` to be a whole number >= 0"),
        ({"fits": {"hidden": {"L_hat": [1.0], "grad_dual_norm": "x"}}}, "`grad_dual_norm`.*to be a list"),
        ({"pending": None}, "`SmoothnessMonitor.pending` to be a mapping"),
        ({"pending": {"a": "x"}}, "`a` in the saved state of `SmoothnessMonitor.pending`"),
    ],
)
def test_what_no_monitor_has_written_is_refused_before_anything_has_changed(change, message):
    monitor = SmoothnessMonitor()
    before = monitor.state_dict()
    with pytest.raises(ValueError, match=message):
        monitor.load_state_dict({**before, "steps": 7, **change})
    assert monitor.state_dict() == before


def test_a_checkpoint_does_not_choose_where_a_file_is_written(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=5, filename="{step}")
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path / "run"}
    fit(Net(method="gluon"), callbacks=[SmoothnessMonitor(every_n_steps=2), saver], **options)
    path = tmp_path / "step=5.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    key = next(key for key in checkpoint["callbacks"] if key.startswith("SmoothnessMonitor"))
    checkpoint["callbacks"][key]["file"] = "../outside.jsonl"
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="to be a name such as"):
        fit(
            Net(method="gluon"), callbacks=[SmoothnessMonitor(every_n_steps=2)], ckpt_path=path, max_epochs=2, **options
        )
    assert not (tmp_path / "outside.jsonl").exists()
