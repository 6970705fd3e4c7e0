"""Batches of packed token sequences for causal language models."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_gluon.tasks.data.cache import cache_folder, cached, digest
from lightning_gluon.tasks.data.loader import ResumableLoader, default_seed
from lightning_gluon.tasks.data.text_sources import Corpus, read_files, read_hub_text, read_python
from lightning_gluon.tasks.data.tokenizer import ByteTokenizer, Tokenizer, check_vocabulary, load_tokenizer, train_bpe
from lightning_gluon.valid import number, one_of, whole

__all__ = ["PackedTokens", "TextData"]

_PATH_OF = {"files": "a text file or a folder of them", "hub": "a hub id such as `JeanKaddour/minipile`"}
TEXT_CHECKS = {
    "source": one_of("python", "packages", "files", "hub"),
    "seq_len": whole(1),
    "batch_size": whole(1),
    "val_fraction": number(0, 1),
    "max_bytes": whole(1, none="everything"),
    "max_val_sequences": whole(1, none="all"),
    "num_workers": whole(),
}


class PackedTokens(Dataset[Any]):
    """Windows of `length + 1` tokens that overlap by one: every token but the first is predicted exactly once.

    Args:
        tokens: One long array.
        length: Number of predictions per window.

    Example:
        >>> tokens = PackedTokens(np.arange(10), length=4)
        >>> [tokens[i].tolist() for i in range(len(tokens))]
        [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    """

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens = tokens
        self.length = length

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.length)

    def __getitem__(self, index: int) -> Tensor:
        start = index * self.length
        return torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))


class TextData(LightningDataModule):
    """Packed sequences of tokens, from this environment's Python sources, local files or the hub.

        window_i = tokens[i T : (i + 1) T + 1],    T = seq_len

    Shapes: batches of tokens `(batch, seq_len + 1)`.

    Documents are tokenized, each ended by a token of its own, concatenated and cut into windows. Tokens and tokenizer
    are kept in a cache under a fingerprint of the text, so that a second run starts at once.

    Args:
        source: `python` (embedded: the standard library's sources), `packages` (those and the installed packages'),
            `files` (text, JSON lines or parquet: a file or a folder) or `hub` (an id).
        path: The file or folder of `files`, the id of `hub`.
        val_path: A file or folder that is held out, for `files`.
        hub_config: Name of the hub dataset's configuration.
        column: The column with the text, of JSON lines, parquet and the hub.
        tokenizer: `bpe` (trained on the training split), `bytes`, or a model's hub id or folder.
        vocab_size: Number of tokens of `bpe`.
        seq_len: Predictions per sequence.
        batch_size: Sequences per batch and process.
        val_fraction: Part that is held out where the source has no validation split.
        max_bytes: Where to stop reading, in characters; None reads everything.
        max_val_sequences: Sequences to validate on; None takes all.
        cache_dir: Where to keep tokens; None takes `$LIGHTNING_GLUON_CACHE` or the user's cache folder.
        num_workers: Processes that make batches; slicing an array needs none.
        seed: Seed of the order; None takes the one of `seed_everything`.

    Raises:
        ValueError: If the source is unknown or lacks its `path`, or a number is out of range.

    References:
        Byte-level BPE: A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

    Example:
        >>> TextData("files", path="corpus.txt", tokenizer="bytes").seq_len
        256
    """

    def __init__(
        self,
        source: Literal["python", "packages", "files", "hub"] = "python",
        path: str | None = None,
        val_path: str | None = None,
        hub_config: str | None = None,
        column: str = "text",
        tokenizer: str = "bpe",
        vocab_size: int = 4096,
        seq_len: int = 256,
        batch_size: int = 16,
        val_fraction: float = 0.05,
        max_bytes: int | None = None,
        max_val_sequences: int | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        given = locals()
        for name, check in TEXT_CHECKS.items():
            check(name, given[name])
        super().__init__()
        if source in _PATH_OF and not path:
            raise ValueError(f"Expected `path` with source={source!r}: {_PATH_OF[source]}.")
        if tokenizer == "bpe":
            check_vocabulary(vocab_size)
        self.source = source
        self.path = path
        self.val_path = val_path
        self.hub_config = hub_config
        self.column = column
        self.tokenizer_name = tokenizer
        self.bpe_size = vocab_size
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.val_fraction = val_fraction
        self.max_bytes = max_bytes
        self.max_val_sequences = max_val_sequences
        self.cache = cache_folder(cache_dir)
        self.seed = default_seed(seed)
        self.tokens: dict[str, np.ndarray] = {}

    def prepare_data(self) -> None:
        """Fill the cache, in one process per machine."""
        self._tokenize()

    def setup(self, stage: str) -> None:
        """Map the cached tokens into memory, once.

        Args:
            stage: Lightning's name of what is about to run; both splits are made for any of them.

        Raises:
            ValueError: If a split is shorter than one sequence.
        """
        if self.tokens:
            return
        tokenizer, tokens = self._tokenize()
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        self.pretrained_tokenizer = tokenizer.pretrained
        for split, array in tokens.items():
            if len(array) <= self.seq_len:
                raise ValueError(
                    f"Expected at least `seq_len` + 1 = {self.seq_len + 1} tokens in the {split} split, but got "
                    f"{len(array)}. Lower `seq_len`, raise `max_bytes` or `val_fraction`, or give more text."
                )
        self.tokens = tokens

    def _read(self) -> Corpus:
        bounds = self.max_bytes, self.val_fraction
        if self.source == "files":
            return read_files(str(self.path), *bounds, val_path=self.val_path, column=self.column)
        if self.source == "hub":
            return read_hub_text(str(self.path), self.hub_config, *bounds, column=self.column)
        return read_python(*bounds, packages=self.source == "packages")

    def _tokenize(self) -> tuple[Tokenizer, dict[str, np.ndarray]]:
        corpus = self._read()
        everything = chain(corpus.train, ["held out"], corpus.val)
        tokenizer = self._tokenizer(corpus.train)
        name = digest([digest(everything), tokenizer.key])
        tokens = {}
        for split, documents in (("train", corpus.train), ("val", corpus.val)):
            write = partial(_write_tokens, tokenizer, documents)
            tokens[split] = cached(self.cache / f"tokens-{name}-{split}.npy", _read_tokens, write)
        return tokenizer, tokens

    def _tokenizer(self, documents: list[str]) -> Tokenizer:
        if self.tokenizer_name == "bytes":
            return ByteTokenizer()
        if self.tokenizer_name == "bpe":
            file = f"bpe-{digest(documents)}-{self.bpe_size}-words.json"
            return train_bpe(documents, self.bpe_size, self.cache / file)
        return load_tokenizer(self.tokenizer_name)

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled sequences that can be resumed inside an epoch."""
        loader = ResumableLoader(
            PackedTokens(self.tokens["train"], self.seq_len),
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        return loader if self.trainer is None else loader.follow(self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the held-out sequences in order."""
        tokens = self.tokens["val"]
        if self.max_val_sequences is not None:
            tokens = tokens[: self.max_val_sequences * self.seq_len + 1]
        dataset = PackedTokens(tokens, self.seq_len)
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the held-out sequences in order."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the held-out sequences in order."""
        return self.val_dataloader()


def _write_tokens(tokenizer: Tokenizer, documents: list[str], file: Path) -> None:
    none = np.zeros(0, np.uint32)
    encoded = tokenizer.encode(documents)
    tokens = np.concatenate([none, *encoded])
    with file.open("wb") as handle:
        np.save(handle, tokens)


def _read_tokens(file: Path) -> np.ndarray:
    tokens = np.load(file, mmap_mode="r")
    if tokens.dtype != np.uint32 or tokens.ndim != 1:
        raise ValueError(f"it holds an array of {tokens.dtype} with shape {tokens.shape}, which is no list of tokens")
    return tokens
