"""An optimizer for the Trainer of transformers, which gives a factory the model instead of bare parameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_gluon.configure import configure_optimizers
from lightning_gluon.optimizer import Gluon

__all__ = ["OptimizerFactory"]

# Arguments of `configure_optimizers` that the Trainer of transformers has under names of its own.
ELSEWHERE_SET = {"schedule": "lr_scheduler_type", "warmup": "warmup_steps"}


class OptimizerFactory:
    """A factory for `optimizer_cls_and_kwargs` of the Trainer of transformers.

        X <- (1 - lr * weight_decay) X - lr * radius[role] * D(M)

    The Trainer instantiates it, then calls it with the model. So names and module types are known, and every parameter
    gets its role. Checkpoints of the Trainer hold the state and resume exactly. Schedules are the Trainer's own.

    Shapes: parameters of any shape.

    References:
        `transformers.trainer_optimizer.is_optimizer_factory`, from transformers 5.

    Example:
        >>> options = {"method": "gluon", "lr": 0.02}
        >>> given = dict(optimizer_cls_and_kwargs=(OptimizerFactory, options))  # Trainer(..., **given)
        >>> OptimizerFactory()(nn.Linear(4, 2), **options).param_groups[0]["lr"]
        0.02
    """

    def __call__(self, model: nn.Module, **options: Any) -> Gluon:
        """Return the optimizer of a model.

        Args:
            model: The model to train.
            **options: Arguments of `lightning_gluon.configure_optimizers`.

        Returns:
            The optimizer.

        Raises:
            ValueError: If the method takes a gradient elsewhere than at the weights, or an option is the Trainer's.
        """
        for name, other in ELSEWHERE_SET.items():
            if name in options:
                raise ValueError(f"Expected `{name}` to be left to the Trainer of transformers. Set `{other}` there.")
        if not isinstance(options.get("lr"), float):
            raise ValueError(f"Expected `lr` to be a number, such as 0.02, but got {options.get('lr')!r}.")
        optimizer = configure_optimizers(model, **options)
        assert isinstance(optimizer, Gluon)
        if optimizer.reference_point is not None:
            raise ValueError(
                f"Expected a method whose gradient is taken once and at the weights, but {options['method']!r} takes "
                "it elsewhere, which the Trainer of transformers cannot do. Use Lightning's, or method 'gluon'."
            )
        return optimizer
