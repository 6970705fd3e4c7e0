"""One session per fit: whoever wants the last iterate, or gradients there, says so, and is shown them at the next step.

    want(layers)            in step k: keep X^k and g^k of these layers
    want(..., again=True)   and run every micro-batch of step k+1 at X^k too
    pairs(layers)           in step k+1: the layers at both iterates
    supply(consumer)        from now on: run every micro-batch at the optimizer's own reference point too

There is one wrapper of `training_step`, one copy of X^k (none if the optimizer keeps it), one window, one state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.kept import Gradients, Kept, show_overflow_, unscale_
from lightning_gluon.replay.lightning import (
    callbacks_of,
    inside_window,
    loss_scale,
    scaler_of,
    set_callbacks,
    skips_backward,
)
from lightning_gluon.replay.optimizers import own_optimizers, parameters_of, unwrapped
from lightning_gluon.replay.ranks import mean
from lightning_gluon.replay.replay import Replay
from lightning_gluon.replay.snapshot import Moment
from lightning_gluon.replay.window import Window, load_window_, save_window
from lightning_gluon.smoothness.readings import Pair
from lightning_gluon.step.layers import Layer
from lightning_gluon.two_point.exchange import Swap, exchanged
from lightning_gluon.two_point.parts import BatchParts


class Session(Callback):
    """The further passes of a fit, for all callbacks that want some; the first in the Trainer's list."""

    def __init__(self) -> None:
        self.optimizer: Gluon | None = None
        self.supplied: Callback | None = None
        self.reads_parts = False  # whether somebody wants the noise of the gradients that are supplied
        self.undo = ExitStack()  # what is to be undone when the fit ends
        self._kept = Kept()  # this iterate, for the coming step
        self._last = Kept()  # the one before, while a step is being measured
        self._window: Window | None = None  # loaded, until training starts
        self._loaded_parts: Mapping[str, Tensor] = {}
        self._parts = BatchParts()
        self._replay: Replay | None = None
        self._look: Moment | None = None
        self._moving: set[Tensor] = set()  # frozen parameters that steps write to
        self._shift = ExitStack()
        self._running = False

    # ------------------------------------------------------------------ what consumers call

    @staticmethod
    def of(trainer: Trainer) -> Session:
        """Return the session of a fit that is about to start, which begins when the first consumer asks for it.

        Args:
            trainer: The Trainer, whose optimizers are known.

        Returns:
            The one in the Trainer's callbacks, or a new one.
        """
        present = callbacks_of(trainer)
        session = next((callback for callback in present if isinstance(callback, Session)), None)
        if session is None:
            session = Session()
        others = [callback for callback in present if callback is not session]
        set_callbacks(trainer, [session, *others])  # so that all others see every gradient
        if not session._running:
            session._begin(trainer)
        return session

    def supply(self, consumer: Callback) -> None:
        """Fill `optimizer.reference_gradients` in every step, or take gradients at the transported point.

        Args:
            consumer: The callback that wants it; without it in the Trainer's callbacks nothing is done.
        """
        self.supplied = consumer

    def want(self, layers: Sequence[Layer], *, again: bool = False) -> None:
        """Keep this iterate for the coming step; call it before the step is taken.

        Args:
            layers: Layers to show.
            again: Run the coming step's micro-batches here too, unless the method does.
        """
        optimizer = self._own()
        wanted = [layer.parameter for layer in layers]
        again = again and not self._free
        copied = list(parameters_of(optimizer)) if again else wanted  # the whole model moves together
        kept = self._previous()  # from a parameter's first step on
        self._kept.keep(wanted, [parameter for parameter in copied if parameter not in kept])
        self._kept.again |= again

    def pairs(self, layers: Sequence[Layer]) -> list[Pair]:
        """Return layers at this iterate and the last one; call it before the step is taken.

        Args:
            layers: The layers to show.

        Returns:
            One per layer that has a gradient and was wanted in the step before.
        """
        last = self._last
        weights = {**self._previous(), **last.weights}
        old = self._own().reference_gradients if self._free else last.old
        found = []
        for layer in layers:
            parameter = layer.parameter
            gradient, before = parameter.grad, weights.get(parameter)
            if gradient is None or before is None or parameter not in last.wanted:
                continue
            pair = Pair(layer, gradient, before, last.gradients.get(parameter))
            pair.new = last.new.get(parameter)
            pair.old = old.get(parameter)
            found.append(pair)
        return found

    # ------------------------------------------------------------------ begin and end

    def _begin(self, trainer: Trainer) -> None:
        optimizer = next(own_optimizers(trainer), None)
        if optimizer is not self.optimizer:
            self._kept = Kept()
            self._last = Kept()
        self.optimizer = optimizer
        self.supplied = self._window = None
        self.reads_parts = False
        self._running = True
        if optimizer is None:
            return
        self.patch(trainer.strategy, "training_step", self._wrap(trainer, trainer.strategy.training_step))
        self.undo.callback(optimizer.register_load_state_dict_pre_hook(self._load).remove)

    def patch(self, owner: object, name: str, replacement: Callable) -> None:
        """Set an attribute of one instance until the fit ends."""
        if name in vars(owner):
            self.undo.callback(setattr, owner, name, vars(owner)[name])
        else:
            self.undo.callback(delattr, owner, name)
        setattr(owner, name, replacement)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the accumulation window that the checkpoint was taken in: Lightning has cleared its gradients."""
        if self._window is not None and self.optimizer is not None:
            load_window_(self.optimizer, self._window)
            self._parts.load(self.optimizer.param_groups, self._loaded_parts)
        self._window = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the Trainer and the module as they were, and keep the checkpoint of the finished run."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the weights at X: `teardown` is not called when `fit` raises."""
        self._release()

    def _release(self) -> None:
        self._shift.close()
        self.undo.close()
        self._replay = self._look = None
        self._moving.clear()
        self._running = False

    # ------------------------------------------------------------------ one micro-batch

    def _wrap(self, trainer: Trainer, original: Callable) -> Callable:
        """Wrap the strategy's `training_step`: remember what it is given, or run it at the transported point."""

        def training_step(*args: object, **kwargs: object) -> Any:
            self._shift.close()
            self._replay = self._look = None
            if self in callbacks_of(trainer) and not skips_backward(trainer):
                self._enter(trainer, original, args, kwargs)
            output = original(*args, **kwargs)
            if output is None:  # Lightning skips the backward pass
                self._shift.close()
            return output

        return training_step

    def _enter(self, trainer: Trainer, original: Callable, args: tuple, kwargs: Mapping[str, object]) -> None:
        optimizer, supplies = self._own(), self._supplies(trainer)
        second = supplies and optimizer.needs_reference
        if self._kept.again or (second and self._free):
            self._replay = Replay(trainer, original, args, kwargs, self._moving)
        elif supplies and self._free:
            self._look = Moment(trainer.lightning_module, self._moving)
        if second and not self._free:
            self._shift.enter_context(optimizer.at_reference())
        if second and self._read:
            self._shift.enter_context(self._parts.first(optimizer.param_groups))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the same micro-batch at the points that are wanted; or, with igt, go back to X."""
        self._shift.close()
        if self._look is not None:
            self._look.notice()  # so that the first second pass knows which frozen parameters the step writes to
        replay = self._replay
        self._replay = self._look = None
        if replay is None:
            return
        if self._free and self._supplies(trainer):
            self._supply(replay)
        if self._kept.again:
            self._sample(replay)

    def _supply(self, replay: Replay) -> None:
        optimizer = self._own()
        if optimizer.folds:
            replay.fold(optimizer, optimizer.at_reference())
            return
        so_far = optimizer.reference_gradients
        with self._parts.second(optimizer.param_groups) if self._read else nullcontext():
            optimizer.reference_gradients = replay.gradients(optimizer, optimizer.at_reference(), so_far)
        if scaler_of(replay.trainer) is not None:
            show_overflow_(optimizer.reference_gradients)

    def _sample(self, replay: Replay) -> None:
        optimizer, kept = self._own(), self._kept
        kept.old = replay.gradients(optimizer, self._at_kept(), kept.old)
        if optimizer.reference_point is not None:  # `.grad` is taken at the transported point
            kept.new = replay.gradients(optimizer, nullcontext(), kept.new)

    def _at_kept(self) -> AbstractContextManager[None]:
        """Return a context in which all weights are those of the iterate that was kept."""
        weights = {**self._previous(), **self._kept.weights}
        return exchanged([Swap([parameter], [before]) for parameter, before in weights.items()])

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        """Begin a window."""
        self._kept.begin()
        if self.supplied is not None and self.optimizer is not None:
            self.optimizer.reference_gradients = {}
            self.optimizer.folded = False
            self._parts.begin()

    # ------------------------------------------------------------------ one step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        """End the window: show the kept iterate; the present one can be kept."""
        if self.optimizer is None or unwrapped(optimizer) is not self.optimizer:
            return
        scale = loss_scale(trainer)
        if self._supplies(trainer):
            unscale_(list(self.optimizer.reference_gradients.values()), scale)
            if self._read and self.optimizer.needs_reference:
                self._tell_parts(trainer, scale)
        self._last = self._kept
        self._last.complete(scale)
        self._kept = Kept()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Let go of the iterate that was shown."""
        self._last = Kept()

    def _tell_parts(self, trainer: Trainer, scale: float) -> None:
        optimizer = self._own()
        optimizer.readings = self._parts.end(
            optimizer.param_groups,
            optimizer.reference_gradients,
            scale,
            partial(mean, trainer),
            trainer.world_size,
        )

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save an unfinished window, and the iterate that is kept, with the optimizer's state."""
        saved = checkpoint.get("optimizer_states")
        if self.optimizer is None or not saved:
            return
        optimizers = [unwrapped(optimizer) for optimizer in trainer.optimizers]
        index = optimizers.index(self.optimizer)
        needed = self.supplied is not None and self.optimizer.reference_point is not None
        if needed and inside_window(trainer):
            saved[index]["window"] = save_window(trainer, self.optimizer)
            if self._read:
                saved[index]["parts"] = self._parts.saved(self.optimizer.param_groups, partial(mean, trainer))
        if self._kept.wanted:
            saved[index]["kept"] = self._kept.saved(self.optimizer)

    def _load(self, optimizer: object, state_dict: dict[str, Any]) -> None:
        """Hold a loaded window until training starts, and take the iterate that was kept."""
        self._window = state_dict.get("window")
        self._loaded_parts = state_dict.get("parts", {})
        if "kept" in state_dict:
            self._kept = Kept.load(self._own(), state_dict["kept"])

    # ------------------------------------------------------------------ what is where

    def _own(self) -> Gluon:
        if self.optimizer is None:
            raise RuntimeError("A session shows the layers of an optimizer of `lightning_gluon`, but there is none.")
        return self.optimizer

    @property
    def _free(self) -> bool:
        """True if the method itself takes a second gradient at the previous iterate."""
        return self._own().reference_point == "previous"

    @property
    def _read(self) -> bool:
        """True if the parts of the batch are compared."""
        return self._free and (self.reads_parts or bool(self._own().estimated_groups))

    def _supplies(self, trainer: Trainer) -> bool:
        return self.supplied is not None and self.supplied in callbacks_of(trainer)

    def _previous(self) -> Gradients:
        """Return those weights before the last step that the optimizer keeps."""
        optimizer = self._own()
        found = {}
        if optimizer.keeps_previous:
            for parameter in parameters_of(optimizer):
                state = optimizer.state.get(parameter, {})
                if "previous" in state:
                    found[parameter] = state["previous"]
        return found
