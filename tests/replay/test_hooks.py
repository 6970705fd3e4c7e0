"""Where the callback hooks in, what it leaves behind, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_gluon import Gluon
from lightning_gluon.callbacks import VarianceReduction
from lightning_gluon.callbacks.portable_state import PortableState
from lightning_gluon.callbacks.variance_reduction import UNSUPPORTED, refuse
from lightning_gluon.replay.session import Session
from tests._two_point import (
    QUIET,
    Bare,
    ByHand,
    Loader,
    Memory,
    Net,
    Pairs,
    Watch,
    data,
    differing,
    fit,
    gluon,
    state,
    trainer,
)


def test_attached_once_and_first() -> None:
    runner = fit(Net(method="gluon-mvr1"), callbacks=[Pairs()])
    assert [type(callback) for callback in runner.callbacks] == [Session, VarianceReduction, Pairs, PortableState]
    runner.fit(Net(method="gluon-mvr1"), Loader(data()))
    assert [type(callback) for callback in runner.callbacks] == [Session, VarianceReduction, Pairs, PortableState]


def test_an_optimizer_built_by_hand() -> None:
    ends = []
    for kind, callbacks in ((Net, [Pairs()]), (ByHand, [Pairs(), VarianceReduction()])):
        torch.manual_seed(1)
        model = kind(method="gluon-mvr1")
        runner = fit(model, callbacks=callbacks)
        ends.append(state(model, gluon(runner)))
    assert [type(callback) for callback in runner.callbacks] == [Session, Pairs, VarianceReduction]
    assert differing(*ends) == []


def test_without_the_callback_it_says_which_line_to_add() -> None:
    model = ByHand(method="gluon-mvr1")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match=r"Add `lightning_gluon\.callbacks\.VarianceReduction\(\)`"):
        fit(model)
    assert all(map(torch.equal, before, model.parameters())), "the first step would still be possible"


@pytest.mark.parametrize("kind", ["gluon", "adamw"])
def test_inert_where_nothing_is_needed(kind: str) -> None:
    class AdamW(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    pl.seed_everything(1)
    runner = fit(AdamW() if kind == "adamw" else ByHand(method="gluon"), callbacks=[VarianceReduction()])
    assert runner.global_step == 7
    if kind == "gluon":
        assert runner.callback_metrics["gluon/gradient_evaluations"] == 7


def test_with_the_other_lightning_package() -> None:
    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return Gluon(self, lr=0.0, method="gluon-mvr1")

    pairs = Pairs()
    runner = pytorch_lightning.Trainer(**QUIET, callbacks=[pairs, VarianceReduction()])
    runner.fit(Other(), Loader(data()))
    assert len(pairs.steps) == 6
    assert pairs.unequal() == []
    assert runner.callback_metrics["gluon/gradient_evaluations"] == 13


def test_cost_is_logged_after_every_step() -> None:
    logger = Memory()
    fit(Net(method="gluon-mvr1"), logger=logger, log_every_n_steps=2, accumulate_grad_batches=2)
    rows = [row["gluon/gradient_evaluations"] for _, row in logger.rows if "gluon/gradient_evaluations" in row]
    assert rows == [3.0, 7.0]


def test_leaves_the_trainer_and_the_module_as_they_were() -> None:
    model = Net(method="gluon-mvr1")
    runner = fit(model)
    assert "training_step" not in vars(runner.strategy)
    assert "configure_gradient_clipping" not in vars(model)
    assert gluon(runner).two_point == "closure"
    assert not gluon(runner)._optimizer_step_pre_hooks


@pytest.mark.parametrize("method", ["gluon-mvr1", "gluon-igt"])
def test_an_epoch_that_only_renews_batch_norm_moves_nothing(method: str) -> None:
    """Weight averaging ends with one: no backward pass, but a step at its end, with the gradients of another epoch."""
    seen = []

    class Averaged(StochasticWeightAveraging):
        def on_train_batch_end(self, runner: pl.Trainer, module: Any, *args: Any) -> None:
            if runner.current_epoch == 2:
                seen.append(module.last.weight.detach().clone())

    callback = Averaged(swa_lrs=0.05, swa_epoch_start=1)
    model = Net(method=method)
    fit(model, callbacks=[callback], max_epochs=2)
    assert len(seen) == 7
    average = callback._average_model.last.weight
    assert all(torch.equal(weight, average) for weight in [*seen, model.last.weight])


def test_fit_after_validate() -> None:
    """What a validation leaves in buffers and metrics are inference tensors, which nobody may write to in training."""

    class Keeps(Net):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.register_buffer("kept", torch.zeros(3))
            self.accuracy = MulticlassAccuracy(3)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            logits = self.last(self.first(batch[0]))
            self.kept = logits.mean(0)
            self.accuracy(logits, batch[1])
            self.log("accuracy", self.accuracy)

    model, runner = Keeps(method="gluon-mvr1"), trainer(num_sanity_val_steps=0)
    runner.validate(model, Loader(data(batches=1)), verbose=False)
    assert model.kept.is_inference()
    runner.fit(model, Loader(data()))
    assert gluon(runner).gradient_evaluations == 13


def test_an_exception_in_the_second_pass_leaves_the_weights_alone() -> None:
    calls = SimpleNamespace(count=0)

    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            calls.count += 1
            if calls.count == 5:
                raise KeyError("stop")
            return super().training_step(batch, batch_idx)

    model, watch, logger = Fails(method="gluon-mvr1"), Watch(), Memory()
    runner = trainer(callbacks=[watch], logger=logger)
    with pytest.raises(KeyError):
        runner.fit(model, Loader(data()))
    assert torch.equal(model.last.weight, watch.path[-1])
    assert "training_step" not in vars(runner.strategy)
    assert "configure_gradient_clipping" not in vars(model)
    assert "log" not in vars(model)
    assert runner.loggers == [logger]


class Tuned(Net):
    def __init__(self) -> None:
        super().__init__(method="gluon-mvr1")
        self.lr, self.batch_size = 0.05, 4

    def train_dataloader(self) -> Loader:
        return Loader(data(), self.batch_size)

    def val_dataloader(self) -> Loader:
        return Loader(data(batches=1), self.batch_size)


@pytest.mark.parametrize("finder", ["lr", "batch size"])
def test_finders_run_plain_momentum_with_one_warning(finder: str, tmp_path: Any) -> None:
    if finder == "lr":
        callback: Any = LearningRateFinder(num_training_steps=5, update_attr=False)
    else:
        callback = BatchSizeFinder(steps_per_trial=3, max_trials=1)
    pairs = Pairs()
    runner = trainer(callbacks=[callback, pairs], default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="finders remove all callbacks") as caught:
        runner.fit(Tuned())
    assert sum("finders remove all callbacks" in str(warning.message) for warning in caught) == 1
    assert len(pairs.steps) == runner.global_step - 1 > 0
    assert gluon(runner).gradient_evaluations == 2 * runner.global_step - 1


def test_a_late_and_an_unused_parameter() -> None:
    class Late(Bare):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.first.requires_grad_(False)
            self.spare = nn.Linear(3, 3)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                self.first.requires_grad_(True)
                gluon(self.trainer).add_param_group({"params": list(self.first.parameters())})

    pairs = Pairs()
    model = Late(method="gluon-mvr1", lr=0.0)
    optimizer = gluon(fit(model, callbacks=[pairs]))
    assert len(pairs.steps) == 6
    assert {name for name, _, _ in pairs.steps[-1]} > {name for name, _, _ in pairs.steps[0]}
    assert pairs.unequal() == []
    assert model.spare.weight not in optimizer.state


def test_a_parameter_that_skips_a_step_is_compared_with_where_it_was() -> None:
    """Its previous iterate is where it stood one step ago, not where it stood when it last moved."""
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = Gluon(nn.ModuleList([one, two]), lr=0.1, method="gluon-mvr1")
    for used in ([one, two], [one, two], [one]):

        def closure(used: list = used) -> Tensor:
            optimizer.zero_grad()
            loss = sum(layer(torch.ones(2, 3)).square().sum() for layer in used)
            loss.backward()
            return loss

        before = one.weight.detach().clone()
        optimizer.step(closure)
    with optimizer.at_reference():
        assert torch.equal(one.weight, before)
        assert torch.equal(two.weight, optimizer.state[two.weight]["previous"])
        kept = two.weight.detach().clone()
    assert torch.equal(two.weight, kept)
    assert not torch.equal(one.weight, before)


# ---------------------------------------------------------------- refusals


def test_refuses_manual_optimization() -> None:
    class Manual(ByHand):
        automatic_optimization = False

    with pytest.raises(ValueError, match=r"works under automatic optimization.*step\(closure\)"):
        fit(Manual(method="gluon-mvr1"), callbacks=[VarianceReduction()])


def test_refuses_a_step_that_draws_its_batch() -> None:
    class Draws(Net):
        def training_step(self, dataloader_iter: Any) -> None:
            raise AssertionError("never reached")

    with pytest.raises(ValueError, match=r"draws its batch inside the step"):
        fit(Draws(method="gluon-mvr1"))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_refuses_strategies(name: str) -> None:
    strategy = type("Own", (type(name, (), {}),), {})()  # a subclass of the user's is refused as well
    with pytest.raises(ValueError, match=f"cannot run under `{name}` yet.*Use `strategy='ddp'`"):
        refuse(SimpleNamespace(strategy=strategy), Net())


def test_refused_names_exist() -> None:
    homes = [pl.strategies, pl.strategies.xla, pl.strategies.single_xla]
    for name in UNSUPPORTED:
        assert any(hasattr(home, name) for home in homes) or name == "XLAFSDPStrategy"  # of older versions
