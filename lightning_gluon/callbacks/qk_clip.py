"""QK-clip: attention heads whose logits grow too large are scaled down in their weights, after the step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_gluon.callbacks.attention import AttentionHeads, LogitMeter, find_attention, hooks_of
from lightning_gluon.replay.lightning import check_log, log_values, should_log
from lightning_gluon.replay.optimizers import check_point, own_optimizer
from lightning_gluon.valid import number


class QKClip(Callback):
    """Scale queries and keys of the heads whose largest attention logit in a step's batch is above a threshold.

        f_h = min(1, tau / S_h),   S_h = max_{i, j} q_i^T k_j / sqrt(d)   over batch and ranks, i attends to j
        k_j <- sqrt(s_j) k_j,   q_h <- f_h / sqrt(s_j) q_h,   s_j = max of f_h over the heads of key j

    After the step the logits of these heads, on the same input, are `f_h` times what they were. All others keep their
    weights bit for bit. With one head per key this is `q, k <- sqrt(f) q, sqrt(f) k`. Of grouped queries a key is
    scaled no further than all of its heads want. In latent attention (MLA) the part without rotation takes the root on
    both sides, and the rotated queries take `f_h`, since their key is shared. Biases are scaled with their rows.

    It knows the attention of transformers and timm by the tables of the partition. It sees the logits if the module
    calls `scaled_dot_product_attention` or a softmax, at the cost of one further product of queries and keys. Momentum
    is not scaled. `retract="sphere"` would undo the clipping. Logged is `qk_clip/largest_logit`.

    Shapes: logits are numbers without a unit.

    Args:
        threshold: The largest logit that is left alone (`tau`).
        log: Whether to log; default: if the Trainer has a logger.

    Raises:
        ValueError: If `threshold` is not positive. At the start of training, if no attention is known, queries or keys
            are normalised behind their projections, or the method rebuilds the previous weights or leaves them.
        NotImplementedError: At the start of training, if the weights are sharded.
        RuntimeError: In training, if an attention module ran and its logits could not be seen.

    References:
        "Kimi K2: Open Agentic Intelligence" (MuonClip), arXiv 2507.20534. Grouped queries are our reading.

    Example:
        >>> QKClip(threshold=50.0).threshold
        50.0
    """

    def __init__(self, threshold: float = 100.0, *, log: bool | None = None) -> None:
        positive = number(signs="< <")
        self.threshold = positive("threshold", threshold)
        self.logging = log  # Lightning sets `log` on callbacks
        self._logs = False
        self._attentions: list[AttentionHeads] = []
        self._meters: list[LogitMeter] = []
        self._hooks: list[Any] = []
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the attention modules, and look into them from now on."""
        optimizer = own_optimizer(trainer)
        check_point(optimizer, "QKClip")
        self._logs = check_log(trainer, self.logging, "QKClip")
        self._attentions = find_attention(pl_module)
        _check_found(self._attentions)

        def wanted(module: nn.Module) -> bool:
            return module.training and torch.is_grad_enabled() and not optimizer.away

        self._meters = [LogitMeter(attention.heads, wanted) for attention in self._attentions]
        self._hooks = list(hooks_of(self._attentions, self._meters))
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Scale the heads down, if a step was taken."""
        if trainer.global_step == self._steps or not self._meters:
            return
        self._steps = trainer.global_step
        tops = trainer.strategy.reduce(self._largest(pl_module.device), reduce_op="max")
        assert isinstance(tops, Tensor)
        heads = [attention.heads for attention in self._attentions]
        for attention, top in zip(self._attentions, tops.split(heads), strict=True):
            factors = torch.where(top > self.threshold, self.threshold / top, torch.ones_like(top))
            attention.scale_(factors)
        if self._logs and should_log(trainer):
            log_values(trainer, {"qk_clip/largest_logit": float(tops.max())})

    def _largest(self, device: torch.device) -> Tensor:
        """Return the largest logits of all heads since the last step; of those that did not run minus infinity."""
        tops = []
        for attention, meter in zip(self._attentions, self._meters, strict=True):
            if meter.calls and meter.top is None:
                raise RuntimeError(
                    f"The logits of {attention.name!r}, a {type(attention.module).__name__}, could not be seen. Take "
                    "the attention implementation 'sdpa' or 'eager', and leave `torch.compile` out."
                )
            nothing = torch.full((attention.heads,), -torch.inf, device=device)
            tops.append(nothing if meter.top is None else meter.top)
            meter.clear()
        return torch.cat(tops)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop looking."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop looking."""
        self._release()

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._meters, self._attentions = [], [], []


def _check_found(attentions: list[AttentionHeads]) -> None:
    if not attentions:
        raise ValueError(
            "Expected attention modules whose heads are known, such as those of transformers and timm, but got none. "
            "Leave `QKClip` out."
        )
    for attention in attentions:
        if hasattr(attention.query.layer.weight, "full_tensor"):
            raise NotImplementedError(
                f"The projections of {attention.name!r} are sharded. `QKClip` scales whole weights: train with DDP or "
                "on one device."
            )
