"""Causal language models of transformers: from a configuration, from the hub, or with LoRA adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lightning_gluon.tasks.hub import add_lora, build_causal_lm
from lightning_gluon.tasks.metrics import Perplexity
from lightning_gluon.tasks.optimizer import OptimizerByCallback
from lightning_gluon.tasks.sharding import shard
from lightning_gluon.valid import whole

__all__ = ["CausalLM"]

# Entries of configurations that scale or cap the logits behind the output layer.
_BEHIND_THE_HEAD = (
    "final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier",
    "dim_model_base",
)  # fmt: skip


class CausalLM(OptimizerByCallback):
    """Next-token prediction on batches `(batch, length + 1)` of tokens.

    Args:
        name: A model type of transformers (`qwen2`, `mamba`, `gpt2`, ...) to build from `config`, or a hub id or local
            folder (`Qwen/Qwen2.5-0.5B`, `state-spaces/mamba-130m-hf`) to take the configuration from.
        config: Entries of the configuration; with a hub id, those to override.
        pretrained: Whether to load the weights of the hub id or folder.
        lora: Arguments of `peft.LoraConfig`, such as `{r: 8, target_modules: all-linear}`; trains adapters only.
        loss_chunk: Tokens whose logits are held at once; None holds all. Saves `vocabulary x tokens` floats. Not for
            models that scale or cap their logits, such as Gemma 2 or Granite.
        grad_checkpointing: Whether to recompute activations in the backward pass.
        compile: Whether to compile the network.
        sharding: Arguments of `lightning_gluon.tasks.sharding.shard`, for a strategy that cuts weights over ranks.

    Raises:
        ValueError: If the model type or an entry of the configuration is unknown, or `loss_chunk` does not fit it.
        ConnectionError: If the hub cannot be reached.

    Example:
        >>> config = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1)
        >>> config |= dict(num_attention_heads=2, num_key_value_heads=1)
        >>> model = CausalLM("qwen2", config=config)
        >>> tuple(model(torch.zeros(2, 5, dtype=torch.long)).shape)
        (2, 5, 32)
    """

    def __init__(
        self,
        name: str = "qwen2",
        config: dict[str, Any] | None = None,
        pretrained: bool = False,
        lora: dict[str, Any] | None = None,
        loss_chunk: int | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        sharding: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        whole(1, none="all at once")("loss_chunk", loss_chunk)
        self.save_hyperparameters()
        self.net = build_causal_lm(name, config or {}, pretrained=pretrained)
        self.vocab_size = int(self.net.get_input_embeddings().num_embeddings)
        if lora is not None:
            self.net = add_lora(self.net, lora)
        if grad_checkpointing:
            _save_memory(self.net)
        if loss_chunk is not None:
            _check_chunked(self.net.config)
        if compile:
            called = self.net if loss_chunk is None else self._body
            called.compile()
        self.loss_chunk = loss_chunk
        self.sharding = sharding or {}
        self.val_perplexity, self.test_perplexity = Perplexity(), Perplexity()
        self._shape = (0, 0)

    def configure_model(self) -> None:
        """Cut the weights over the ranks, if the strategy asks for it."""
        if shard(self, **self.sharding):
            register_fsdp_forward_method(self, "_chunked_loss")  # it calls the parts of the network one by one

    def setup(self, stage: str) -> None:
        """Check that data and precision fit the model.

        Args:
            stage: Lightning's name of what is about to run.

        Raises:
            ValueError: If the vocabulary is larger than the model's, or mambapy would run in bf16-true.
        """
        data = getattr(self.trainer, "datamodule", None)
        size = getattr(data, "vocab_size", None)
        if size is not None and size > self.vocab_size:
            raise ValueError(
                f"Expected the model's vocabulary to hold the tokenizer's {size} tokens, but it has {self.vocab_size}. "
                f"Set model.init_args.config.vocab_size to at least {size}, or lower data.init_args.vocab_size."
            )
        if self.trainer.precision == "bf16-true" and getattr(self.net.config, "use_mambapy", False):
            raise ValueError("Expected precision 'bf16-mixed' or '32-true' with mambapy, but got 'bf16-true'.")

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits `(batch, length, vocabulary)`."""
        return self.net(input_ids=tokens, use_cache=False).logits

    def mean_loss(self, batch: Tensor) -> Tensor:
        """Return the mean cross-entropy (nats) over all predictions of a batch."""
        samples, length = batch.shape
        self._shape = (samples, length - 1)
        inputs = batch[:, :-1]
        targets = batch[:, 1:].flatten()
        if self.loss_chunk is None:
            logits = self(inputs).flatten(0, 1)
            return cross_entropy(logits.float(), targets)
        return self._chunked_loss(inputs, targets)

    def _chunked_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, from the logits of some tokens at a time."""
        assert self.loss_chunk is not None
        output = self._body(input_ids=inputs, use_cache=False)
        hidden = output[0]
        chunks = zip(
            hidden.flatten(0, 1).split(self.loss_chunk),
            targets.split(self.loss_chunk),
            strict=True,
        )
        losses = [checkpoint(self._chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]
        total = torch.stack(losses).sum()
        return total / targets.numel()

    @property
    def _body(self) -> Any:
        """The network without its output layer; the `base_model` of an adapted one is still the whole."""
        whole = self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net
        return whole.base_model

    def _chunk_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.net.get_output_embeddings()(hidden).float(), targets, reduction="sum")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch and log it."""
        loss = self.mean_loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _evaluate(self, batch: Tensor, split: str) -> None:
        loss = self.mean_loss(batch)
        samples, length = self._shape
        perplexity: Any = getattr(self, f"{split}_perplexity")
        perplexity.update(loss, weight=samples * length)
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=samples, sync_dist=True)
        self.log(f"{split}/perplexity", perplexity, prog_bar=True)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log loss and perplexity of held-out text."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log loss and perplexity of test text."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the most likely next token at every place."""
        return self(batch[:, :-1]).argmax(-1)

    @property
    def flops_per_batch(self) -> int:
        """Operations of a training batch, 6 per weight and token and 12 per layer, width and context (PaLM, app. B).

        A table that is only looked up does not count, one that is tied to the output layer does.
        """
        samples, length = self._shape
        config = self.net.config
        weights = sum(p.numel() for p in self.net.parameters())
        if not config.tie_word_embeddings:
            table = self.net.get_input_embeddings().weight
            weights -= table.numel()
        heads = getattr(config, "num_attention_heads", 0)
        width = 0
        if heads:
            head_width = getattr(config, "head_dim", None)
            width = heads * (head_width or config.hidden_size // heads)
        attention = 12 * config.num_hidden_layers * width * length
        per_token = 6 * weights + attention
        share = 1.0 if self.training else 1 / 3  # a backward pass costs two forward passes
        return int(share * per_token * samples * length)


def _save_memory(net: Any) -> None:
    """Recompute activations; transformers 5 has renamed the method."""
    if hasattr(net, "activation_checkpointing_enable"):
        net.activation_checkpointing_enable()
    else:
        net.gradient_checkpointing_enable()


def _check_chunked(config: Any) -> None:
    found = [name for name in _BEHIND_THE_HEAD if getattr(config, name, None) not in (None, 1)]
    if found:
        raise ValueError(
            f"Expected logits that are the output layer's own with `loss_chunk`, but {type(config).__name__} changes "
            f"them by {', '.join(found)}. Set model.init_args.loss_chunk to null."
        )
