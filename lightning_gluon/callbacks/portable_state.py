"""The optimizer's state in a checkpoint, numbered so that every strategy can load it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.lightning import add_missing
from lightning_gluon.replay.optimizers import parameters_of, unwrapped


class PortableState(Callback):
    """Number the parameters of a `Gluon` optimizer in a checkpoint as the module does: `id = position in parameters()`.

    An optimizer numbers parameters group by group, and groups are roles. Lightning's `ModelParallelStrategy` takes the
    numbers in a file for positions in `module.parameters()`, and would give each weight the state of another. Where
    groups follow that order, or the strategy names parameters itself, there is nothing to do. Loading by the optimizer
    goes by names, of shapes any, so both numberings load on one device and under DDP.

    `lightning_gluon.configure_optimizers` adds this callback by itself.

    References:
        `lightning.fabric.strategies.model_parallel._rekey_optimizer_state_if_needed`, Lightning 2.6.

    Example:
        >>> trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> PortableState.attach(trainer)
        >>> type(trainer.callbacks[-1]).__name__
        'PortableState'
    """

    @staticmethod
    def attach(trainer: Trainer) -> None:
        """Add the callback to a Trainer that has none, behind all others.

        Args:
            trainer: The Trainer.
        """
        add_missing(trainer, PortableState)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Number the parameters."""
        if not trainer.strategy.lightning_restore_optimizer:  # it has named or numbered them already
            return
        places = {parameter: place for place, parameter in enumerate(pl_module.parameters())}
        states = checkpoint.get("optimizer_states", [])
        for optimizer, state in zip(map(unwrapped, trainer.optimizers), states, strict=False):
            if isinstance(optimizer, Gluon):
                _renumber(optimizer, state, places)


def _renumber(optimizer: Gluon, state: dict[str, Any], places: dict[Any, int]) -> None:
    params = list(parameters_of(optimizer))
    if any(parameter not in places for parameter in params):  # of another module: nobody knows its positions
        return
    given = [number for group in state["param_groups"] for number in group["params"]]
    new = {number: places[parameter] for number, parameter in zip(given, params, strict=True)}
    state["state"] = {new[number]: kept for number, kept in state["state"].items()}
    for group in state["param_groups"]:
        group["params"] = [new[number] for number in group["params"]]
