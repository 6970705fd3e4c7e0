"""Instructions and conversations to fine-tune a language model on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lightning_gluon.tasks.data.conversations import ChatColumns, Conversation, Example, Template, read_conversation
from lightning_gluon.tasks.data.hub import load_dataset, split_name
from lightning_gluon.tasks.data.loader import ResumableLoader, default_seed
from lightning_gluon.tasks.data.packing import collate, pack
from lightning_gluon.tasks.data.text_files import TableRow, find_files, read_rows
from lightning_gluon.tasks.data.tokenizer import load_pretrained
from lightning_gluon.tasks.generate import filler_token
from lightning_gluon.valid import number, one_of, whole

__all__ = ["ChatData"]

CHAT_CHECKS = {
    "source": one_of("files", "hub"),
    "loss_on": one_of("answers", "all"),
    "packing": one_of(True, False),
    "seq_len": whole(2),
    "batch_size": whole(1),
    "val_fraction": number(0, 1),
    "max_examples": whole(1, none="all"),
    "num_workers": whole(),
}
SHARES = 10_000  # resolution of the held-out fraction
OFFLINE_CHAT = "source='files'"


class ChatData(LightningDataModule):
    """Conversations through a chat template, with the loss on the answers.

        loss = - sum_t c_t log p(x_t | x_<t) / sum_t c_t

    where `c_t` (`loss_on`) is 1 for a token of an answer, the one that ends it too, and 0 for the rest. A row has a
    column with the prompt and one with the response, or one with messages of `role` and `content`. Examples longer than
    `seq_len` are cut at their end. Those that keep no answer are left out, and both are counted in a warning.

    Shapes: batches have `input_ids` and `labels` of shape `(batch, length)`, and `position_ids` if packed.

    Args:
        path: JSON lines, parquet or a folder of them; with source `hub` an id.
        tokenizer: Hub id or folder of a model, whose chat template is used.
        source: `files` or `hub`.
        val_path: Files to hold out.
        hub_config: Name of the hub dataset's configuration.
        prompt: Column with the prompt.
        response: Column with the response.
        messages: Column with the messages; used if a row has it.
        template: Jinja text, a file with it, or `plain`; None takes the tokenizer's own.
        loss_on: `answers`, or `all` tokens.
        packing: Whether several examples share a row. Positions restart and attention stays inside an example.
        seq_len: Tokens of an example at most, and of a packed row.
        batch_size: Rows per batch and process.
        val_fraction: Part that is held out if there is no validation split; 0 holds none out.
        max_examples: Training examples to keep, the first ones; None keeps all.
        num_workers: Processes that make batches.
        seed: Seed of the order; None takes the one of `seed_everything`.

    Raises:
        ValueError: If a number is out of range.

    References:
        Chat templates and the label -100 are those of transformers. Packing is best fit decreasing: M. Krell et al.,
        "Efficient Sequence Packing without Cross-contamination", arXiv 2107.02027.

    Example:
        >>> ChatData("rows.jsonl", tokenizer="my_model", prompt="question", response="answer").columns.prompt
        'question'
    """

    def __init__(
        self,
        path: str,
        tokenizer: str,
        source: Literal["files", "hub"] = "files",
        val_path: str | None = None,
        hub_config: str | None = None,
        prompt: str = "prompt",
        response: str = "response",
        messages: str = "messages",
        template: str | None = None,
        loss_on: Literal["answers", "all"] = "answers",
        packing: bool = False,
        seq_len: int = 1024,
        batch_size: int = 8,
        val_fraction: float = 0.05,
        max_examples: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        given = locals()
        for name, check in CHAT_CHECKS.items():
            check(name, given[name])
        super().__init__()
        self.path = path
        self.source = source
        self.val_path = val_path
        self.hub_config = hub_config
        self.columns = ChatColumns(prompt, response, messages)
        self.tokenizer_name = tokenizer
        self.template_text = template
        self.answers_only = loss_on == "answers"
        self.packing = packing
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.max_examples = max_examples
        self.num_workers = num_workers
        self.seed = default_seed(seed)
        self.rows: dict[str, list[list[Example]]] = {}

    def setup(self, stage: str) -> None:
        """Read, split and tokenize the conversations, once.

        Args:
            stage: Lightning's name of what is about to run; both splits are made for any of them.

        Raises:
            ValueError: If nothing is left to train on.
        """
        if self.rows:
            return
        self.pretrained_tokenizer = load_pretrained(self.tokenizer_name)
        self.vocab_size = len(self.pretrained_tokenizer)
        self.template = Template(self.pretrained_tokenizer, self.template_text)
        train, self.held_out = self._read()
        rows = {"train": self._rows(train[: self.max_examples]), "val": self._rows(self.held_out)}
        if not rows["train"]:
            raise ValueError(f"Expected examples with an answer in '{self.path}', but none is left to train on.")
        self.rows = rows

    def _read(self) -> tuple[list[Conversation], list[Conversation]]:
        """Return the conversations to train on and those held out."""
        if self.source == "hub":
            loaded = load_dataset(self.path, self.hub_config, otherwise=OFFLINE_CHAT)
            train = self._conversations(_hub_rows(loaded, "train", self.path))
            held_out = split_name(loaded, "val")
            if held_out is not None:
                return train, self._conversations(_hub_rows(loaded, held_out, self.path))
        else:
            train = self._conversations(_file_rows(self.path))
            if self.val_path is not None:
                held = self._conversations(_file_rows(self.val_path))
                return _without(train, held), held
        return _hold_out(train, self.val_fraction)

    def _conversations(self, rows: Iterator[TableRow]) -> list[Conversation]:
        return [read_conversation(row, self.columns) for row in rows]

    def _rows(self, conversations: list[Conversation]) -> list[list[Example]]:
        """Tokenize conversations, say what was cut, and put them into rows."""
        kept: list[Example] = []
        long = empty = 0
        for example in self.template.encode(conversations, answers_only=self.answers_only):
            long += len(example.tokens) > self.seq_len
            cut = example.cut(self.seq_len)
            if cut.targets:
                kept.append(cut)
            else:
                empty += 1
        if long or empty:
            rank_zero_warn(
                f"Of {len(conversations)} examples of '{self.path}', {long} are longer than seq_len={self.seq_len} and "
                f"are cut; {empty} keep no answer and are left out."
            )
        rows = [[example] for example in kept]
        lengths = [len(example.tokens) for example in kept]
        if self.packing:
            places = pack(lengths, self.seq_len)
            rows = [[kept[place] for place in row] for row in places]
        counted = sum(example.targets for example in kept)
        tokens = sum(lengths)
        if rows:
            rank_zero_info(f"{len(kept)} examples in {len(rows)} rows: {tokens:,} tokens, the loss counts {counted:,}.")
        return rows

    @property
    def _collate(self) -> partial[dict[str, torch.Tensor]]:
        width = self.seq_len if self.packing else None
        return partial(collate, filler=filler_token(self.pretrained_tokenizer), width=width)

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled rows that can be resumed inside an epoch."""
        loader = ResumableLoader(
            self.rows["train"],
            batch_size=self.batch_size,
            seed=self.seed,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        return loader if self.trainer is None else loader.follow(self.trainer)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the held-out rows in order; an empty list if there are none."""
        rows: Any = self.rows["val"]
        if not rows:
            return []
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=self._collate, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the held-out rows in order."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the held-out prompts in order, with their answers: mappings of lists `prompts` and `references`."""
        dataset: Any = self.held_out
        return DataLoader(dataset, batch_size=self.batch_size, collate_fn=self._prompts)

    def prompts(self, count: int) -> dict[str, list[str]]:
        """Return the first held-out `count` prompts, as lists `prompts` and `references`."""
        return self._prompts(self.held_out[:count])

    def _prompts(self, conversations: Sequence[Conversation]) -> dict[str, list[str]]:
        prompts = [self.template.prompt(one) for one in conversations]
        references = [one.messages[one.answers[-1]]["content"] for one in conversations]
        return {"prompts": prompts, "references": references}


def _file_rows(path: str) -> Iterator[TableRow]:
    place = Path(path).expanduser()
    files = [place] if place.is_file() else [file for file in find_files(path) if file.suffix in (".jsonl", ".parquet")]
    for file in files:
        yield from read_rows(file)


def _hub_rows(loaded: Any, split: str, name: str) -> Iterator[TableRow]:
    for row, values in enumerate(loaded[split]):
        yield TableRow(f"row {row} of '{name}' ({split})", values)


def _without(train: list[Conversation], held: list[Conversation]) -> list[Conversation]:
    """Return the training conversations that are not held out too."""
    known = {str(one.messages) for one in held}
    return [one for one in train if str(one.messages) not in known]


def _hold_out(conversations: list[Conversation], fraction: float) -> tuple[list[Conversation], list[Conversation]]:
    """Hold a conversation out if the checksum of its text says so, so that equal ones stay together."""
    train: list[Conversation] = []
    held: list[Conversation] = []
    for one in conversations:
        bucket = zlib.crc32(str(one.messages).encode(errors="replace")) % SHARES
        split = held if bucket < fraction * SHARES else train
        split.append(one)
    if fraction and not held and len(train) > 1:  # too few for their checksums
        held.append(train.pop())
        train = _without(train, held)
    return train, held
