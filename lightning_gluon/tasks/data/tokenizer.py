"""Text to integers: a BPE tokenizer trained on the spot, bytes, or a tokenizer that comes with a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from lightning_gluon.extras import require
from lightning_gluon.tasks.data.cache import cached, digest

__all__ = ["ByteTokenizer", "Tokenizer", "load_pretrained", "load_tokenizer", "train_bpe"]

_END = "<|endoftext|>"
_BATCH = 256  # documents that are encoded together
_LONGEST_WORD = 64  # bytes; the time of training grows with the square of a word's length


class Tokenizer(Protocol):
    """The part of a tokenizer that the data module needs.

    Its `key` tells its tokens from those of any other; `pretrained` is the same tokenizer in transformers, or None.
    """

    vocab_size: int
    key: str
    pretrained: Any

    def encode(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield one array of tokens per document, its end marked."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of some tokens."""


class ByteTokenizer:
    """UTF-8 bytes, and 256 for the end of a document.

    Example:
        >>> next(ByteTokenizer().encode(["hi"])).tolist()
        [104, 105, 256]
    """

    vocab_size, key, pretrained = 257, "bytes", None

    def encode(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield one array of tokens per document, its end marked."""
        for document in documents:
            yield np.append(np.frombuffer(document.encode(), np.uint8).astype(np.uint32), np.uint32(256))

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of some tokens."""
        return bytes(t for t in tokens if t < 256).decode(errors="replace")


class BPETokenizer:
    """A byte-level BPE of the `tokenizers` package.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        end: Token that ends a document.
        pretrained: The same as a tokenizer of transformers; None makes one.
    """

    def __init__(self, tokenizer: Any, end: str, pretrained: Any = None) -> None:
        if pretrained is None:
            pretrained = require("transformers").PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
        self.pretrained = pretrained
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(end)
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())  # ids may have holes
        self.key = digest([tokenizer.to_str(), end])

    def encode(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield one array of tokens per document, its end marked."""
        iterator = iter(documents)
        while batch := list(islice(iterator, _BATCH)):
            for encoded in self.tokenizer.encode_batch(batch, add_special_tokens=False):
                yield np.asarray([*encoded.ids, self.end], dtype=np.uint32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of some tokens."""
        return self.tokenizer.decode(list(tokens))


def train_bpe(documents: Iterable[str], vocab_size: int, cache: Path) -> BPETokenizer:
    """Train a byte-level BPE tokenizer, or read the one that was trained on the same documents before.

    A token never spans two words. Text without spaces is cut into words of 64 bytes.

    Args:
        documents: Training documents; held-out ones do not belong here.
        vocab_size: Number of tokens, at least 257: the bytes and the end of a document.
        cache: File to keep the tokenizer in.

    Returns:
        The tokenizer.

    Raises:
        ValueError: If `vocab_size` is too small.
    """
    check_vocabulary(vocab_size)
    tokenizers = require("tokenizers")

    def read(file: Path) -> Any:
        return tokenizers.Tokenizer.from_file(str(file))

    def write(file: Path) -> None:
        _train_tokenizer(tokenizers, documents, vocab_size).save(str(file))

    trained = cached(cache, read, write)
    trained.encode_special_tokens = True  # a source that spells the end of a document does not end there
    return BPETokenizer(trained, _END)


def check_vocabulary(size: int) -> None:
    """Raise if a vocabulary cannot hold the 256 bytes and the end of a document."""
    if size < 257:
        raise ValueError(f"Expected `vocab_size` >= 257 (256 bytes and the end of a document), but got {size}.")


def _train_tokenizer(tokenizers: ModuleType, documents: Iterable[str], vocab_size: int) -> Any:
    splitters = tokenizers.pre_tokenizers
    words = splitters.ByteLevel(add_prefix_space=False)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = splitters.Sequence([words, splitters.FixedLength(_LONGEST_WORD)])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END],
        initial_alphabet=sorted(splitters.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return bpe


def load_tokenizer(name: str) -> BPETokenizer:
    """Load the tokenizer of a model by its hub id or local folder, to encode documents.

    Args:
        name: The id or folder.

    Returns:
        The tokenizer.
    """
    loaded = load_pretrained(name)
    return BPETokenizer(loaded.backend_tokenizer, loaded.eos_token, loaded)


def load_pretrained(name: str) -> Any:
    """Load the tokenizer of a model by its hub id or local folder, as transformers has it.

    Args:
        name: The id or folder.

    Returns:
        The tokenizer.

    Raises:
        ConnectionError: If it is not there and the hub cannot be reached.
        ValueError: If it has no token for the end of a document.
    """
    transformers = require("transformers")
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"Expected to load the tokenizer '{name}', but: {error} Without a network use tokenizer='bpe' (trained on "
            "the spot) or 'bytes', or the folder of a local copy."
        ) from error
    if loaded.eos_token is None:
        raise ValueError(
            f"Expected a tokenizer with an `eos_token`, which ends a document, but '{name}' has none. Set it in its "
            "tokenizer_config.json, or use another `tokenizer`."
        )
    return loaded
