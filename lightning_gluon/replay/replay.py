"""The same micro-batch once more, at other weights: a training step and its backward pass without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.batch import copy_batch
from lightning_gluon.replay.kept import Gradients
from lightning_gluon.replay.lightning import scaler_of
from lightning_gluon.replay.ranks import anywhere, averaged
from lightning_gluon.replay.snapshot import Moment, untouched
from lightning_gluon.two_point.exchange import exchanged_gradients

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class Replay:
    """One call of `training_step`, remembered at its entry so that it can be repeated exactly.

    Args:
        trainer: The Trainer.
        training_step: The strategy's own `training_step`.
        args: Its arguments, which are copied: a step may write to its batch, or pop entries from it.
        kwargs: Its keyword arguments.
        moving: Frozen parameters that steps were seen to write to, which is added to.
    """

    def __init__(
        self, trainer: Trainer, training_step: Callable, args: tuple, kwargs: Mapping[str, object], moving: set[Tensor]
    ) -> None:
        self.trainer = trainer
        self.training_step = training_step
        self.args, self.kwargs = copy_batch(args), copy_batch(dict(kwargs))
        self.start = Moment(trainer.lightning_module, moving)

    def gradients(
        self, optimizer: Gluon, point: AbstractContextManager[None], so_far: Mapping[Tensor, Tensor]
    ) -> Gradients:
        """Repeat the step and its backward pass at a point; all else comes out as it was.

        Args:
            optimizer: The optimizer.
            point: A context in which the weights are at the point.
            so_far: Gradients of the earlier micro-batches of this window, which these are added to.

        Returns:
            The sums, for every parameter that has a gradient.
        """
        params = self._params(optimizer)
        model = self.trainer.strategy.model
        # DDP may let gradients live in its buckets, which the next backward pass overwrites.
        shared = bool(getattr(model, "gradient_as_bucket_view", False))
        apart = bool(getattr(model, "find_unused_parameters", False) and so_far)
        with (
            noted(params if apart else ()) as used,
            exchanged_gradients(params, so_far, clone=shared) as taken,
        ):
            self._run_at(point, optimizer)
        return self._complete(params, taken.gradients, used) if apart else taken.gradients

    def fold(self, optimizer: Gluon, point: AbstractContextManager[None]) -> None:
        """Repeat them with gradients that are folded into `.grad`.

        Args:
            optimizer: The optimizer, whose option `fold` is set.
            point: A context in which the weights are at the point.
        """
        with optimizer.folding():
            self._run_at(point, optimizer)

    def _params(self, optimizer: Gluon) -> list[Tensor]:
        """Return every parameter of the module and of the optimizer, once."""
        found = dict.fromkeys(self.trainer.lightning_module.parameters())
        for group in optimizer.param_groups:
            found.update(dict.fromkeys(group["params"]))
        return list(found)

    def _complete(self, params: list[Tensor], gradients: Gradients, used: set[Tensor]) -> Gradients:
        """Average the gradients that DDP has left alone: it has no memory of earlier second passes of the window.

        In the pass that ends a window DDP averages the gradients of the parameters used since it last did so, which was
        in the first pass of the same micro-batch. Those of the others are still those of one rank.

        Args:
            params: All parameters.
            gradients: Their gradients, summed over the window.
            used: Those that this rank's last micro-batch used.

        Returns:
            The gradients, averaged at the end of a window.
        """
        if not self.trainer.strategy.model.require_backward_grad_sync:  # type: ignore[union-attr]
            return gradients
        seen = anywhere(self.trainer, [parameter in used for parameter in params])
        left = [parameter for parameter, here in zip(params, seen, strict=True) if not here]
        return {**gradients, **averaged(self.trainer, left, gradients)}

    def _run_at(self, point: AbstractContextManager[None], optimizer: Gluon) -> None:
        with point:
            taken = self._run(optimizer)
        if not taken:  # the step skips this micro-batch there: `c_old = c_new` is plain momentum
            self._run(optimizer)

    def _run(self, optimizer: Gluon) -> bool:
        """Do what Lightning's closure does between `training_step` and `backward`, without its hooks."""
        trainer, module = self.trainer, self.trainer.lightning_module
        with untouched(trainer, module, self.start), torch.enable_grad():
            output = self.training_step(*copy_batch(self.args), **copy_batch(self.kwargs))
            loss = output["loss"] if isinstance(output, Mapping) else output
            if loss is None:
                return False
            loss = loss / trainer.accumulate_grad_batches
            scaler = scaler_of(trainer)
            if scaler is not None:
                loss = scaler.scale(loss)
            trainer.precision_plugin.backward(loss, module, optimizer)
        return True


@contextmanager
def noted(params: Iterable[Tensor]) -> Iterator[set[Tensor]]:
    """Note which parameters a backward pass reaches.

    Args:
        params: The parameters to look at.

    Yields:
        A set that they are added to.
    """
    used: set[Tensor] = set()
    with ExitStack() as hooks:
        for parameter in params:
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(used.add)
                hooks.callback(handle.remove)
        yield used
