"""Answers of a language model to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["answer", "end_tokens", "filler_token"]

NEW_TOKENS = 128  # unless `max_new_tokens` says otherwise


def answer(net: Any, tokenizer: Any, prompts: Sequence[str], **options: Any) -> list[str]:
    """Return the answers of a model, the most likely token at each place unless `do_sample` is given.

    The model is in evaluation mode meanwhile. Random streams go on only if it samples.

    Args:
        net: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompts: Text as the chat template makes it.
        **options: Arguments of `generate` of transformers, such as `max_new_tokens`, `do_sample` or `temperature`.

    Returns:
        An answer per prompt, without the tokens that end it.
    """
    filler = filler_token(tokenizer)
    encoded = tokenizer(list(prompts), add_special_tokens=False)
    tokens, mask = _pad_left(encoded["input_ids"], filler)
    device = net.get_input_embeddings().weight.device
    settings: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "pad_token_id": filler,
        "eos_token_id": end_tokens(tokenizer),
    }
    settings.update(options)
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            written = net.generate(
                input_ids=tokens.to(device),
                attention_mask=mask.to(device),
                **settings,
            )
    finally:
        net.train(training)
    answers = written[:, tokens.shape[1] :]
    return tokenizer.batch_decode(answers, skip_special_tokens=True)


def filler_token(tokenizer: Any) -> int:
    """Return the token that pads rows: that of the `tokenizer`, or the end of a document."""
    if tokenizer.pad_token_id is None:
        return tokenizer.eos_token_id
    return tokenizer.pad_token_id


def _pad_left(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Return rows as one tensor that ends where each of them ends, and where they are."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), filler)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        start = width - len(row)
        tokens[number, start:] = torch.tensor(row)
        mask[number, start:] = 1
    return tokens, mask


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's own, and the one that its chat template writes behind it.

    Args:
        tokenizer: A tokenizer of transformers.

    Returns:
        One token or two.
    """
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        turns = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        *_, last = tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
        if last in tokenizer.added_tokens_decoder and last not in ends:
            ends.append(last)
    return ends
