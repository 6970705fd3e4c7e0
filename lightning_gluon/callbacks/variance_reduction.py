"""The second gradient of the variance-reduced methods, exact under Lightning's automatic optimization.

    c_new = grad f(X^k; batch),    c_old = grad f(X^{k-1}; the same batch, dropout masks and loss scale)

Lightning's closure cannot simply be called twice: hooks, clipping, logs, metrics and batch-norm statistics would
double, dropout would differ, and under accumulation only the last micro-batch would be seen again. So after the
backward pass of every micro-batch its `training_step` is run a second time, with the weights exchanged in place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_gluon.estimators.gamma import NO_LOCAL, NO_PARTS
from lightning_gluon.optimizer import Gluon
from lightning_gluon.ranks.pieces import is_sharded
from lightning_gluon.replay.lightning import callbacks_of, has_own_clipping, set_callbacks, skips_backward
from lightning_gluon.replay.optimizers import own_optimizers, parameters_of
from lightning_gluon.replay.session import Session
from lightning_gluon.replay.snapshot import Moment, untouched
from lightning_gluon.two_point.closures import CALLBACK, CLOSURE, NOBODY
from lightning_gluon.two_point.exchange import exchanged_gradients
from lightning_gluon.two_point.payoff import PayOff

# Strategies whose parameters are shards, or which own the backward pass or the step.
UNSUPPORTED = (
    "FSDPStrategy",
    "DeepSpeedStrategy",
    "XLAStrategy",
    "XLAFSDPStrategy",
    "SingleDeviceXLAStrategy",
)


class VarianceReduction(Callback):
    """Give a `Gluon` optimizer the further gradient its method needs; do nothing for methods that need none.

        c_new = grad f(X^k; xi),        c_old = grad f(X^{k-1}; xi)              gluon-mvr1, gluon-mvr2, limuon, ...
        g = grad f(X^k + b / (1 - b) (X^k - X^{k-1}); xi)                        gluon-igt, without a second pass

    After each micro-batch's backward pass at `X^k` the weights are exchanged with `X^{k-1}`, the random streams are
    wound back, and the same micro-batch `xi` is run again. Its gradients, one per parameter and of its shape, are
    summed over the accumulation window in `optimizer.reference_gradients`. They are clipped by the same rule as the
    main ones.

    `lightning_gluon.configure_optimizers` adds this callback by itself. Add it to `Trainer(callbacks=...)` if you build
    the optimizer by hand. All other callbacks see both gradients: in `on_after_backward` the sums so far, and in
    `on_before_optimizer_step` unscaled and not yet clipped. It logs `gluon/gradient_evaluations`, a count, after every
    step.

    With `gamma="auto"` the gradients of micro-batches and ranks are compared before they are added up, which holds one
    more copy of them. The estimate of every group is logged as `gluon/gamma/<group>`, in [0, 1].

    With `readings` two numbers of every group tell whether the second gradient can pay, see
    `lightning_gluon.two_point.payoff`. `gluon/sd_to_sigma/<group>` is the noise of the difference over that of the
    gradient. `gluon/turning/<group>` is the share of the gradient that turns round within the memory of the momentum.
    They need two micro-batches or ranks, hold two more copies of the gradients, and begin anew in a resumed run.

    The second pass runs `training_step` itself, silently. `self.log`, `self.print`, loggers, metric states, buffers,
    attributes, random streams and frozen parameters of the module come out as if it had never run. It starts from what
    the first one started from, such as a recurrent state or a counter. What the step changes elsewhere, in files or in
    objects that are not modules, happens twice. If it returns `None` there only, that micro-batch has `c_old = c_new`.
    Changes made to gradients in `on_after_backward` or `on_before_optimizer_step` reach the main gradient only. Put
    them into `configure_gradient_clipping`, which is applied to both.

    A checkpoint taken inside an accumulation window holds the gradients so far, so training resumes exactly there too.

    Args:
        readings: Whether to log the two numbers.

    Raises:
        ValueError: Before the first step, under manual optimization, `training_step(dataloader_iter)`, FSDP1,
            DeepSpeed or XLA, if the method needs a further gradient; with `fold` under
            gradient clipping; with `gamma="auto"` and a single micro-batch on a single rank.

    References:
        A. Cutkosky, F. Orabona, "Momentum-Based Variance Reduction in Non-Convex SGD" (STORM), arXiv 1905.10018.
        "Gluon-MVR", arXiv 2512.16598.

    Example:
        >>> import lightning_gluon, torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> class Model(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 2)
        ...     def training_step(self, batch, batch_idx):
        ...         return self.layer(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return lightning_gluon.Gluon(self, lr=0.02, method="gluon-mvr1")
        >>> parts = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        >>> quiet = dict.fromkeys(parts, False)
        >>> trainer = Trainer(callbacks=[VarianceReduction()], max_steps=3, accelerator="cpu", **quiet)
        >>> trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(12, 4), batch_size=4))
        >>> trainer.optimizers[0].gradient_evaluations
        5
    """

    def __init__(self, readings: bool = False) -> None:
        self.readings = readings
        self._payoff: PayOff | None = None
        self._session: Session | None = None
        self._optimizer: Gluon | None = None
        self._warned = False

    @staticmethod
    def attach(trainer: Trainer) -> None:
        """Add the callback to a Trainer that has none, also after its `setup` hooks have run.

        Args:
            trainer: The Trainer.

        Example:
            >>> from lightning.pytorch import Trainer
            >>> trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
            >>> VarianceReduction.attach(trainer)
            >>> type(trainer.callbacks[0]).__name__
            'VarianceReduction'
        """
        present = callbacks_of(trainer)
        if not any(isinstance(callback, VarianceReduction) for callback in present):
            set_callbacks(trainer, [VarianceReduction(), *present])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the optimizer, refuse what cannot be exact, and ask for its second gradient in every step."""
        self._optimizer = optimizer = next(own_optimizers(trainer), None)
        if optimizer is None or optimizer.reference_point is None:
            rank_zero_info("`VarianceReduction` has nothing to do: the method takes one gradient, at the weights.")
            return
        refuse(trainer, pl_module)
        if optimizer.folds:
            refuse_clipping(trainer, pl_module)
        session = Session.of(trainer)
        session.supply(self)
        self._session = session
        session.reads_parts = self.readings
        self._payoff = PayOff() if self.readings else None
        optimizer.two_point = CALLBACK
        session.undo.callback(setattr, optimizer, "two_point", CLOSURE)
        session.patch(pl_module, "configure_gradient_clipping", self._clip(trainer, pl_module, optimizer))
        session.undo.callback(optimizer.register_step_pre_hook(self._before_step(trainer)).remove)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to estimate a gamma from a batch that has one part; a loaded checkpoint may ask for it too."""
        optimizer = self._optimizer
        lack = None if optimizer is None else lack_of_parts(trainer, optimizer)
        if optimizer is None or lack is None:
            return
        if optimizer.estimated_groups:
            raise ValueError(lack.format("gamma='auto'"))
        if self._payoff is not None and self._session is not None:
            self._payoff = None
            self._session.reads_parts = False
            rank_zero_warn(f"Nothing is read: {lack.format('VarianceReduction(readings=True)')}")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        """Take the readings of this step's parts, if asked to."""
        own = self._optimizer
        if self._payoff is not None and own is not None and own.readings is not None:
            self._payoff.observe(own.param_groups, own.readings)

    def _clip(self, trainer: Trainer, pl_module: LightningModule, optimizer: Gluon) -> Callable[..., None]:
        """Wrap `configure_gradient_clipping`: the same rule for both gradients, each by its own norm."""
        original = pl_module.configure_gradient_clipping

        def configure_gradient_clipping(*args: Any, **kwargs: Any) -> None:
            references = optimizer.reference_gradients if self in callbacks_of(trainer) else {}
            start = Moment(pl_module) if references else None  # a rule may learn from the norms that it sees
            original(*args, **kwargs)
            if references:
                params = list(parameters_of(optimizer))
                with exchanged_gradients(params, references) as taken, untouched(trainer, pl_module, start):
                    original(*args, **kwargs)
                optimizer.reference_gradients = taken.gradients

        return configure_gradient_clipping

    def _before_step(self, trainer: Trainer) -> Callable[..., None]:
        """Return a hook that notices, before a step, whether this callback is still there to supply the gradient."""

        def before_step(optimizer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            present = self in callbacks_of(trainer)
            optimizer.two_point = CALLBACK if present else NOBODY
            if skips_backward(trainer):  # after averaging weights: what gradients there are belong to others
                optimizer.zero_grad()
            if not present and not self._warned:
                self._warned = True
                rank_zero_warn(
                    "Lightning's learning-rate and batch-size finders remove all callbacks, so no further gradient is "
                    "taken there: they run plain momentum. Training itself is not affected."
                )

        return before_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log the cost of the run so far, and the estimates of gamma."""
        if self._optimizer is not None and not trainer.barebones:
            count = float(self._optimizer.gradient_evaluations)
            pl_module.log("gluon/gradient_evaluations", count, on_step=True, on_epoch=False)
            for group, gamma in self._optimizer.gammas.items():
                pl_module.log(f"gluon/gamma/{group}", gamma, on_step=True, on_epoch=False)
            for name, value in (self._payoff or PayOff()).values().items():
                pl_module.log(f"gluon/{name}", value, on_step=True, on_epoch=False)


def refuse(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise if the second gradient could not be exact."""
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
        if kind.__name__ in UNSUPPORTED:
            raise ValueError(
                f"A method that needs a further gradient cannot run under `{kind.__name__}` yet, because weights are "
                "exchanged in place. Use `strategy='ddp'`, or `ModelParallelStrategy` with `fully_shard`."
            )


def lack_of_parts(trainer: Trainer, optimizer: Gluon) -> str | None:
    """Return the reason why parts of a batch cannot be compared, for who wants to; `None` if they can."""
    if any(is_sharded(layer.parameter) for layer in optimizer.layers()):
        return NO_LOCAL
    return None if trainer.accumulate_grad_batches * trainer.world_size > 1 else NO_PARTS


def refuse_clipping(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise if gradients that share one buffer would be clipped together."""
    own = has_own_clipping(pl_module)
    if trainer.gradient_clip_val or own:
        name = "configure_gradient_clipping" if own else "gradient_clip_val"
        raise ValueError(
            f"Expected no `{name}` with `fold`: the two gradients share one buffer, so each cannot be clipped by its "
            "own norm. Remove one of the two."
        )
