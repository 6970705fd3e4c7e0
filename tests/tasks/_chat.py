"""A tokenizer with a chat template, a tiny model and rows of sums, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import transformers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def save_tokenizer(folder: Path, template: str | None = CHATML) -> str:
    """Write a byte-level tokenizer of 256 bytes and three special tokens."""
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = {letter: number for number, letter in enumerate(sorted(words.alphabet()))}
    bytewise = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, []))
    bytewise.pre_tokenizer = words
    bytewise.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(file: Path, rows: list[Any]) -> str:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(file)


def sums(count: int) -> list[dict[str, str]]:
    """Return questions whose answers are sums."""
    return [{"prompt": f"{i} + {i % 7}", "response": str(i + i % 7)} for i in range(count)]
