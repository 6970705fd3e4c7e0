"""Messages between the ranks of a Trainer: gradients stay each rank's own, and a checkpoint holds what each keeps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gluon.estimators.rank_exchange import RankExchange
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.lightning import add_missing, late_state, replicas_of
from lightning_gluon.replay.optimizers import own_optimizers
from lightning_gluon.step.workers import WorkerState, keep_own_gradients, load_worker_states_, worker_state


class WorkerExchange(Callback):
    """Let the ranks of DDP be the workers of a method that sends messages, such as `ef21-muon`.

        M_j <- momentum of rank j's own gradient,    R_j = C(M_j - G_j),    G <- G + mean_j R_j

    DDP then averages none of those gradients. The only traffic is the messages. Gradients of other groups are averaged
    as ever. Clipping sees each rank's own gradient.

    A checkpoint holds `M_j` and `G_j` of every rank. Resumed on as many ranks the training goes on exactly. On another
    number every rank begins with the mean of the momenta, and sends it in full once.

    `lightning_gluon.configure_optimizers` adds this callback by itself.

    Raises:
        RuntimeError: If DDP has another communication hook already.

    References:
        "EF21-Muon", arXiv 2510.00643.

    Example:
        >>> trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> WorkerExchange.attach(trainer)
        >>> type(trainer.callbacks[-1]).__name__
        'WorkerExchange'
    """

    def __init__(self) -> None:
        self._optimizer: Gluon | None = None
        self._exchange: RankExchange | None = None
        self._saved: list[WorkerState] = []

    @staticmethod
    def attach(trainer: Trainer) -> None:
        """Add the callback to a Trainer that has none.

        Args:
            trainer: The Trainer.
        """
        add_missing(trainer, WorkerExchange)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizer its exchange, and keep DDP from averaging what is sent as messages."""
        optimizer = next(own_optimizers(trainer), None)
        if optimizer is None or not _sends_messages(optimizer):
            return
        self._optimizer = optimizer
        group = replicas_of(trainer)
        optimizer.exchange = self._exchange = RankExchange(group, trainer.strategy.root_device)
        if group is not None:
            wrapped: Any = trainer.strategy.model
            wrapped.register_comm_hook(group, keep_own_gradients(optimizer.param_groups))
        late = late_state(trainer, self)
        if late is not None:
            self.load_state_dict(dict(late))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give this rank its own buffers back, after the state that all share was loaded."""
        optimizer = self._optimizer
        if optimizer is None:
            return
        groups, size = optimizer.param_groups, optimizer.exchange.size
        others = any(group.get("workers", size) != size for group in groups)
        alone = [worker_state(groups, optimizer.state)] if others else []  # saved by a run without this callback
        saved, self._saved = self._saved or alone, []
        if saved:
            load_worker_states_(groups, optimizer.state, saved, optimizer.exchange)

    def state_dict(self) -> dict[str, Any]:
        """Return the buffers of every rank, on the first one; all ranks have to ask for it."""
        if self._optimizer is None:
            return {"workers": self._saved}
        assert self._exchange is not None
        kept = worker_state(self._optimizer.param_groups, self._optimizer.state)
        own = {name: {key: value.cpu() for key, value in tensors.items()} for name, tensors in kept.items()}
        return {"workers": self._exchange.on_first(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the saved buffers until the optimizer has its state.

        Args:
            state_dict: Result of `state_dict()`.
        """
        self._saved = state_dict["workers"]


def _sends_messages(optimizer: Gluon) -> bool:
    return any(ESTIMATORS[group["estimator"]].messages for group in optimizer.param_groups)
