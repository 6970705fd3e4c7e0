"""The second gradient of the variance-reduced methods, exact under Lightning's automatic optimization.

    c_new = grad f(X^k; batch),    c_old = grad f(X^{k-1}; the same batch, dropout masks and loss scale)

Lightning's closure cannot simply be called twice: hooks, clipping, logs, metrics and batch-norm statistics would
double, dropout would differ, and under accumulation only the last micro-batch would be seen again. So after the
backward pass of every micro-batch its `training_step` is run a second time, with the weights exchanged in place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.replay import Replay, exchanged_gradients
from lightning_gluon.replay.snapshot import Moment, untouched
from lightning_gluon.replay.window import Window, load_window_, save_window

__all__ = ["VarianceReduction"]

TRACED = "weights cannot be exchanged in the middle of a traced step"
REFUSED = {
    "FSDPStrategy": "its shards are flat vectors, but an LMO needs matrices; use `ModelParallelStrategy` (FSDP2)",
    "DeepSpeedStrategy": "it owns the backward pass and the step; use DDP or `ModelParallelStrategy`",
    "XLAStrategy": TRACED,
    "XLAFSDPStrategy": TRACED,
    "SingleDeviceXLAStrategy": TRACED,
}


class VarianceReduction(Callback):
    """Give a `Gluon` optimizer the further gradient its method needs; do nothing for methods that need none.

    After each micro-batch's backward pass at `X^k` the weights are exchanged with `X^{k-1}`, the random streams are
    wound back and the same micro-batch is run again; its gradients are summed over the accumulation window in
    `optimizer.reference_gradients` and clipped by the same rule as the main ones. For `igt` there is no second pass:
    `training_step` and its backward pass run at the transported point, everything else at `X`.

    `lightning_gluon.configure_optimizers` adds this callback by itself. Add it to `Trainer(callbacks=...)` if you build
    the optimizer by hand. It keeps itself first among the callbacks, so that all others see both gradients in
    `on_after_backward` (sums so far) and `on_before_optimizer_step` (unscaled, not yet clipped). It logs
    `gluon/gradient_evaluations` after every step.

    The second pass runs `training_step` itself, silently: `self.log`, `self.print`, loggers, metric states, buffers,
    attributes, random streams and frozen parameters of the module come out as if it had never run. It starts from what
    the first one started from, a recurrent state or a counter say. What the step changes elsewhere - in objects that
    are not modules, in files - happens twice. If it returns `None` there only, that micro-batch has `c_old = c_new`.
    Changes made to gradients in `on_after_backward` or `on_before_optimizer_step` reach the main gradient only: put
    them into `configure_gradient_clipping`, which is applied to both.

    A checkpoint taken inside an accumulation window holds the gradients so far, so training resumes exactly there too.

    Raises:
        ValueError: Before the first step, under manual optimization, `training_step(dataloader_iter)`, FSDP1, DeepSpeed
            or XLA, if the method needs a further gradient.

    References:
        A. Cutkosky, F. Orabona, "Momentum-Based Variance Reduction in Non-Convex SGD" (STORM), arXiv 1905.10018.
        "Gluon-MVR", arXiv 2512.16598.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[VarianceReduction()], accelerator="cpu", logger=False)
    """

    def __init__(self) -> None:
        self._optimizer: Gluon | None = None
        self._replay: Replay | None = None
        self._look: Moment | None = None
        self._window: Window | None = None
        self._warned = False
        self._moving: set[Tensor] = set()  # frozen parameters that steps write to
        self._shift = ExitStack()
        self._undo = ExitStack()

    @staticmethod
    def attach(trainer: Any) -> None:
        """Add the callback to a Trainer that has none, also after its `setup` hooks have run.

        Args:
            trainer: The Trainer.
        """
        if not any(isinstance(callback, VarianceReduction) for callback in trainer.callbacks):
            trainer.callbacks = [VarianceReduction(), *trainer.callbacks]

    # ------------------------------------------------------------------ begin and end

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Move to the front, so that every other callback sees both gradients."""
        trainer.callbacks = [self, *(callback for callback in trainer.callbacks if callback is not self)]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the optimizer, refuse what cannot be exact, and hook into the step."""
        self._release()
        self._optimizer = next((some for some in trainer.optimizers if isinstance(some, Gluon)), None)
        optimizer = self._optimizer
        if optimizer is None or optimizer.reference_point is None:
            rank_zero_info("`VarianceReduction` has nothing to do: the method takes one gradient, at the weights.")
            return
        _refuse(trainer, pl_module)
        if optimizer.folds:
            _refuse_clipping(trainer, pl_module)
        optimizer.two_point = "callback"
        self._undo.callback(setattr, optimizer, "two_point", "closure")
        self._patch(trainer.strategy, "training_step", self._training_step(trainer, pl_module, optimizer))
        self._patch(pl_module, "configure_gradient_clipping", self._clip(trainer, pl_module, optimizer))
        self._undo.callback(optimizer.register_step_pre_hook(self._supply(trainer)).remove)
        self._undo.callback(optimizer.register_load_state_dict_pre_hook(self._keep_window).remove)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Continue the accumulation window that the checkpoint was taken in."""
        if self._window is not None and self._optimizer is not None:
            load_window_(self._optimizer, self._window)
        self._window = None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the Trainer and the module as they were."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the weights at X: `teardown` is not called when `fit` raises."""
        self._release()

    def _release(self) -> None:
        self._shift.close()
        self._undo.close()
        self._replay = self._look = None
        self._moving.clear()

    def _patch(self, owner: Any, name: str, replacement: Callable) -> None:
        """Set an attribute of one instance, until `_release`."""
        if name in vars(owner):
            self._undo.callback(setattr, owner, name, vars(owner)[name])
        else:
            self._undo.callback(delattr, owner, name)
        setattr(owner, name, replacement)

    # ------------------------------------------------------------------ one micro-batch

    def _training_step(self, trainer: Any, pl_module: Any, optimizer: Gluon) -> Callable:
        """Wrap the strategy's `training_step`: remember what it is given, or run it at the transported point."""
        original = trainer.strategy.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._shift.close()
            self._replay = self._look = None
            backward = not trainer.fit_loop._skip_backward  # False while batch-norm statistics are only renewed
            if self in trainer.callbacks and optimizer.needs_reference and backward:
                if optimizer.reference_point == "transported":
                    self._shift.enter_context(optimizer.at_reference())
                else:
                    self._replay = Replay(trainer, original, args, kwargs, self._moving)
            elif self in trainer.callbacks and optimizer.reference_point == "previous":
                self._look = Moment(pl_module, self._moving)
            output = original(*args, **kwargs)
            if output is None:  # Lightning skips the backward pass
                self._shift.close()
            return output

        return training_step

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Run the same micro-batch at the previous iterate; or, with igt, go back to X."""
        self._shift.close()
        look, self._look = self._look, None
        if look is not None:
            look.notice()  # so that the first second pass knows which frozen parameters the step writes to
        replay, self._replay = self._replay, None
        if replay is None or self._optimizer is None:
            return
        optimizer = self._optimizer
        optimizer.reference_gradients = replay.gradients(optimizer, optimizer.reference_gradients)
        if getattr(trainer.precision_plugin, "scaler", None) is not None and optimizer.reference_gradients:
            _show_overflow_(optimizer.reference_gradients)

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Begin a new window."""
        if self._optimizer is not None:
            self._optimizer.reference_gradients, self._optimizer.folded = {}, False

    # ------------------------------------------------------------------ one step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Take the loss scale out of the second gradient, as the scaler just has from the main one."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and self._optimizer is not None and self._optimizer.reference_gradients:
            torch._foreach_mul_(list(self._optimizer.reference_gradients.values()), 1 / scaler.get_scale())

    def _clip(self, trainer: Any, pl_module: Any, optimizer: Gluon) -> Callable:
        """Wrap `configure_gradient_clipping`: the same rule for both gradients, each by its own norm."""
        original = pl_module.configure_gradient_clipping

        def configure_gradient_clipping(*args: Any, **kwargs: Any) -> None:
            references = optimizer.reference_gradients if self in trainer.callbacks else {}
            start = Moment(pl_module) if references else None  # a rule may learn from the norms that it sees
            original(*args, **kwargs)
            if references:
                params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                with exchanged_gradients(params, references) as exchanged, untouched(trainer, pl_module, start):
                    original(*args, **kwargs)
                optimizer.reference_gradients = exchanged.taken

        return configure_gradient_clipping

    def _supply(self, trainer: Any) -> Callable:
        """Return a hook that notices, before a step, whether this callback is still there to supply the gradient."""

        def before_step(optimizer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            optimizer.two_point = "callback" if self in trainer.callbacks else "none"
            if trainer.fit_loop._skip_backward:  # after averaging weights: what gradients there are belong to others
                optimizer.zero_grad()
            if optimizer.two_point == "none" and not self._warned:
                self._warned = True
                rank_zero_warn(
                    "Lightning's learning-rate and batch-size finders remove all callbacks, so no further gradient is "
                    "taken there: they run plain momentum. Training itself is not affected."
                )

        return before_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what the run has cost so far."""
        if self._optimizer is not None and not trainer.barebones:
            count = float(self._optimizer.gradient_evaluations)
            pl_module.log("gluon/gradient_evaluations", count, on_step=True, on_epoch=False)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save an unfinished accumulation window with the optimizer's state."""
        if self._optimizer is None or self._optimizer.reference_point is None or not checkpoint.get("optimizer_states"):
            return
        window = save_window(trainer, self._optimizer)
        if window is not None:
            checkpoint["optimizer_states"][0]["window"] = window

    def _keep_window(self, optimizer: Any, state_dict: dict[str, Any]) -> None:
        """Hold a loaded window until training starts: Lightning clears all gradients in between."""
        self._window = state_dict.get("window")


def _refuse(trainer: Any, pl_module: Any) -> None:
    """Raise where the second gradient could not be exact."""
    if not pl_module.automatic_optimization:
        raise ValueError(
            "`VarianceReduction` works under automatic optimization. Under manual optimization remove it and call "
            "`optimizer.step(closure)`: the closure is then evaluated at both points."
        )
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise ValueError(
            "`training_step(dataloader_iter)` draws its batch inside the step, so the same batch cannot be run again "
            "at the previous iterate. Use `training_step(batch, batch_idx)`."
        )
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in REFUSED:
            raise ValueError(
                f"A method that needs a further gradient cannot run under `{kind.__name__}`: {REFUSED[kind.__name__]}."
            )


def _refuse_clipping(trainer: Any, pl_module: Any) -> None:
    """Raise where gradients that share one buffer would be clipped together."""
    own = not type(pl_module).configure_gradient_clipping.__module__.startswith(("lightning.", "pytorch_lightning."))
    if trainer.gradient_clip_val or own:
        raise ValueError(
            f"Expected no {'`configure_gradient_clipping`' if own else '`gradient_clip_val`'} with `fold`: the two "
            "gradients share one buffer, so each cannot be clipped by its own norm. Remove one of the two."
        )


def _show_overflow_(references: dict[Tensor, Tensor]) -> None:
    """Add 0 times the second gradient to the main one, so that the loss scaler sees an overflow in either."""
    pairs = [(parameter.grad, reference) for parameter, reference in references.items() if parameter.grad is not None]
    torch._foreach_add_([gradient for gradient, _ in pairs], [reference for _, reference in pairs], alpha=0.0)
