"""Causal language models of transformers: from a configuration, from the hub, or with LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn.functional import cross_entropy

from lightning_gluon.tasks.batches import Predictions, TokenBatch, read_batch
from lightning_gluon.tasks.checkpoints import (
    add_frozen,
    drop_frozen,
    fingerprint,
    plain_entries,
    task_notes,
    tokenizer_files,
)
from lightning_gluon.tasks.export import card, export_language_model
from lightning_gluon.tasks.generate import answer
from lightning_gluon.tasks.hub import (
    QUANTIZATIONS,
    ModelSource,
    add_lora,
    build_causal_lm,
    check_packing,
    freeze_others,
)
from lightning_gluon.tasks.loss import Score, chunked_loss, score_chunks, score_logits
from lightning_gluon.tasks.metrics import LanguageMetrics
from lightning_gluon.tasks.optimizer import OptimizerByCallback
from lightning_gluon.tasks.sharding import shard
from lightning_gluon.valid import one_of, whole

__all__ = ["CausalLM"]

Reduced = TypeVar("Reduced")

# Entries of configurations that scale or cap the logits behind the output layer.
_BEHIND_THE_HEAD = (
    "final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier",
    "dim_model_base",
)  # fmt: skip


class CausalLM(OptimizerByCallback):
    """A language model that predicts the next token, pretrained in full, fine-tuned, or by adapters.

        loss = - sum_t c_t log p(x_t | x_<t) / sum_t c_t

    with the count `c_t` 1 for every token, or as the labels of the data say. Validation logs `loss` (nats),
    `perplexity = exp(loss)` and `token_accuracy`, each over all counted tokens.

    Shapes: batches are tokens `(batch, length + 1)`, or a mapping with `input_ids` and `labels` `(batch, length)`.

    Args:
        name: A model type of transformers (`qwen2`, `mamba`, `gpt2`, ...) to build from `config`, or a hub id or local
            folder (`Qwen/Qwen2.5-0.5B`, `state-spaces/mamba-130m-hf`) to take the configuration from.
        config: Entries of the configuration; with a hub id, those to override.
        pretrained: Whether to load the weights of the hub id or folder.
        lora: Arguments of `peft.LoraConfig`, such as `{r: 8, target_modules: all-linear}`; trains adapters only. With
            `use_dora: true` they are DoRA's.
        targets: Names of modules to train, such as `[out_proj]`; the rest is frozen. None trains all.
        dtype: Dtype of the weights: `float32`, `bfloat16` or `float16`. Adapters stay in float32.
        quantization: Format of the pretrained weights below adapters, by bitsandbytes: `nf4` (4 bits, as in QLoRA) or
            `int8`.
        attn_implementation: Attention of transformers: `eager`, `sdpa`, `flash_attention_2`, ...; None is its default.
        loss_chunk: Tokens whose logits are held at once; None holds all. Saves `vocabulary x tokens` floats. Not for
            models that scale or cap their logits, such as Gemma 2 or Granite.
        gradient_checkpointing: Whether to recompute activations in the backward pass.
        compile: Whether to compile the network.
        generation: Arguments of `generate` of transformers for answers, such as `{max_new_tokens: 64}`.
        sharding: Arguments of `lightning_gluon.tasks.sharding.shard`, for a strategy that cuts weights over ranks.

    Raises:
        ValueError: If the model type or an entry of the configuration is unknown, or an option does not fit the model.
        ConnectionError: If the hub cannot be reached.

    References:
        E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. S. Liu et al., "DoRA:
        Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353.

    Example:
        >>> config = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1)
        >>> config |= dict(num_attention_heads=2, num_key_value_heads=1)
        >>> model = CausalLM("qwen2", config=config)
        >>> tokens = torch.zeros(2, 5, dtype=torch.long)
        >>> tuple(model(tokens).shape), model.mean_loss(tokens).ndim, model.score(tokens).tokens.item()
        ((2, 5, 32), 0, 8)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.export(Path(folder), notes={"step": 0}, tokenizer=None)
        ...     (Path(folder) / "config.json").exists()
        True
    """

    def __init__(
        self,
        name: str = "qwen2",
        config: dict[str, Any] | None = None,
        pretrained: bool = False,
        lora: dict[str, Any] | None = None,
        targets: list[str] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        quantization: Literal["nf4", "int8"] | None = None,
        attn_implementation: str | None = None,
        loss_chunk: int | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        generation: dict[str, Any] | None = None,
        sharding: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        whole(1, none="all at once")("loss_chunk", loss_chunk)
        one_of("float32", "bfloat16", "float16")("dtype", dtype)
        one_of(None, *QUANTIZATIONS)("quantization", quantization)
        if quantization is not None and not (lora and pretrained):
            raise ValueError(
                f"Expected adapters on pretrained weights with quantization={quantization!r}, since quantised weights "
                "take no step. Set `lora` and `pretrained`, or leave `quantization` out."
            )
        if lora is not None and targets is not None:
            raise ValueError("Expected `lora` or `targets`, but got both. Adapters take `target_modules` in `lora`.")
        self.save_hyperparameters()
        source = ModelSource(
            name,
            config or {},
            pretrained=pretrained,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization=quantization,
        )
        self.net = build_causal_lm(source)
        self.vocab_size = int(self.net.get_input_embeddings().num_embeddings)
        if targets is not None:
            freeze_others(self.net, targets)
        if lora is not None:
            self.net = add_lora(self.net, lora)
        if gradient_checkpointing:
            _save_memory(self.net)
        if loss_chunk is not None:
            _check_chunked(self.net.config)
        if compile:
            called = self.net if loss_chunk is None else self._body
            called.compile()
        self.loss_chunk = loss_chunk
        self.generation = generation or {}
        self.val_metrics = LanguageMetrics()
        self.test_metrics = LanguageMetrics()
        self.sharding = sharding or {}
        self._shape = (0, 0)

    def configure_model(self) -> None:
        """Cut the weights over the ranks, if the strategy asks for it."""
        if shard(self, **self.sharding):
            register_fsdp_forward_method(self, "_chunked")  # it calls the parts of the network one by one

    def setup(self, stage: str) -> None:
        """Check that data and precision fit the model.

        Args:
            stage: Lightning's name of what is about to run.

        Raises:
            ValueError: If the vocabulary is larger than the model's, mambapy would run in bf16-true, or the model
                cannot keep packed documents apart.
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
        if getattr(data, "packing", False):
            check_packing(self.net)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the logits `(batch, length, vocabulary)`.

        Args:
            tokens: Tokens `(batch, length)`.
            positions: The place of each in its document; None counts from the left.

        Returns:
            Logits.
        """
        return self.net(input_ids=tokens, use_cache=False, **_position_arguments(positions)).logits

    def mean_loss(self, batch: TokenBatch) -> Tensor:
        """Return the mean cross-entropy (nats) over all counted predictions of a `batch`."""
        tokens = self._read(batch)
        if self.loss_chunk is None:
            logits = self(tokens.inputs, tokens.positions).flatten(0, 1)
            return cross_entropy(logits.float(), tokens.targets.flatten())
        return self._chunked(tokens, chunked_loss)

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> Score:
        """Return cross-entropy, count and hits over all counted predictions of a `batch`, as sums."""
        tokens = self._read(batch)
        if self.loss_chunk is None:
            logits = self(tokens.inputs, tokens.positions).flatten(0, 1)
            return score_logits(logits, tokens.targets.flatten())
        return self._chunked(tokens, score_chunks)

    def _read(self, batch: TokenBatch) -> Predictions:
        tokens = read_batch(batch)
        samples, length = tokens.inputs.shape
        self._shape = (samples, length)
        return tokens

    def _chunked(self, tokens: Predictions, reduce: Callable[..., Reduced]) -> Reduced:
        """Return a sum over predictions that is made from the logits of some of them at a time."""
        output = self._body(input_ids=tokens.inputs, use_cache=False, **_position_arguments(tokens.positions))
        hidden = output[0].flatten(0, 1)
        return reduce(hidden, self.net.get_output_embeddings(), tokens.targets.flatten(), self.loss_chunk)

    @property
    def _body(self) -> Any:
        """The network without its output layer; the `base_model` of an adapted one is still the whole."""
        whole = self.net.get_base_model() if hasattr(self.net, "get_base_model") else self.net
        return whole.base_model

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch and log it."""
        loss = self.mean_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=self._shape[0])
        return loss

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log loss, perplexity and token accuracy of held-out text."""
        self._evaluate(batch, self.val_metrics, "val")

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log loss, perplexity and token accuracy of test text."""
        self._evaluate(batch, self.test_metrics, "test")

    def _evaluate(self, batch: TokenBatch, metrics: LanguageMetrics, split: str) -> None:
        metrics.update(self.score(batch))
        for name, metric in metrics.named():
            self.log(f"{split}/{name}", metric, prog_bar=name == "loss", batch_size=self._shape[0])

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return answers to a batch of prompts, or of tokens the most likely next one at every place.

        Args:
            batch: A mapping with `prompts`, or tokens `(batch, length + 1)`.
            batch_idx: Number of the batch.

        Returns:
            A list of text, or tokens `(batch, length)`.

        Raises:
            ValueError: If there are prompts and no tokenizer.
        """
        if isinstance(batch, Tensor):
            return self(batch[:, :-1]).argmax(-1)
        if self.tokenizer is None:
            raise ValueError("Expected data with a tokenizer of transformers, such as `ChatData`, but there is none.")
        return answer(self.net, self.tokenizer, batch["prompts"], **self.generation)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers that the data uses; None if it has none."""
        data = getattr(self.trainer, "datamodule", None)
        return getattr(data, "pretrained_tokenizer", None)

    @property
    def _adapters_only(self) -> bool:
        """True if the frozen weights can be had again by their name."""
        return self.hparams["lora"] is not None and self.hparams["pretrained"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint stand alone: it holds configuration and tokenizer, and of adapters those only.

        Args:
            checkpoint: Lightning's.
        """
        tokenizer = self.tokenizer
        notes = task_notes(self)
        notes["tokenizer"] = {} if tokenizer is None else tokenizer_files(tokenizer)
        checkpoint["task"] = notes
        if self._adapters_only:
            notes["base"] = fingerprint(self.net)
            drop_frozen(self, checkpoint["state_dict"])
        elif self.hparams["pretrained"] and "hyper_parameters" in checkpoint:
            config = self.net.config
            built = {"name": config.model_type, "config": plain_entries(config), "pretrained": False}
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], **built}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen weights beside adapters that were saved alone.

        Args:
            checkpoint: Lightning's.

        Raises:
            ValueError: If the adapters were trained on other weights.
        """
        base = checkpoint.get("task", {}).get("base")
        if base is None:
            return
        if base and base != fingerprint(self.net):
            raise ValueError(
                f"Expected the weights that the adapters were trained on, but '{self.hparams['name']}' has others. "
                "Give the same model as `name`."
            )
        add_frozen(self, checkpoint["state_dict"])

    def export(self, folder: Path, *, merge: bool = False, **run: Any) -> None:
        """Write a folder that `AutoModelForCausalLM.from_pretrained` loads, with tokenizer and model card.

        Args:
            folder: An empty folder.
            merge: Whether adapters become part of the weights.
            **run: `notes`, `groups` and `tokenizer` of the run; the module's Trainer has the rest.
        """
        if not run.get("notes"):
            run |= {"notes": task_notes(self), "tokenizer": self.tokenizer}
        export_language_model(self.net, run["tokenizer"], folder, merge=merge)
        text = card(self.hparams["name"], run["notes"], run.get("groups", ()), library="transformers")
        (folder / "README.md").write_text(text, encoding="utf-8")

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


def _position_arguments(positions: Tensor | None) -> dict[str, Tensor]:
    """Return the argument of models that take positions; Mamba knows none."""
    return {} if positions is None else {"position_ids": positions}


def _save_memory(net: Any) -> None:
    """Recompute activations with hooks, which any number of gradients may use; transformers 5 renamed the method."""
    options = {"use_reentrant": False}
    if hasattr(net, "activation_checkpointing_enable"):
        net.activation_checkpointing_enable(options)
    else:
        net.gradient_checkpointing_enable(options)


def _check_chunked(config: Any) -> None:
    found = [name for name in _BEHIND_THE_HEAD if getattr(config, name, None) not in (None, 1)]
    if found:
        raise ValueError(
            f"Expected logits that are the output layer's own with `loss_chunk`, but {type(config).__name__} changes "
            f"them by {', '.join(found)}. Set model.init_args.loss_chunk to null."
        )
