"""Answers of a language model to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["answer", "end_tokens"]

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
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    width = max(len(row) for row in rows)
    device = net.get_input_embeddings().weight.device
    tokens = torch.tensor([[filler] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": filler}
    settings |= {"eos_token_id": end_tokens(tokenizer), **options}
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            written = net.generate(input_ids=tokens, attention_mask=mask, **settings)
    finally:
        net.train(training)
    return tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's own, and the one that its chat template writes behind it.

    Args:
        tokenizer: A tokenizer of transformers.

    Returns:
        One token or two.
    """
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        *_, last = tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
        if last in tokenizer.added_tokens_decoder and last not in ends:
            ends.append(last)
    return ends
