"""Conversations as tokens: rows with a prompt and a response, or with messages, through a chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lightning_gluon.tasks.data.text_files import TableRow

__all__ = ["ChatColumns", "Conversation", "Example", "Template", "read_conversation"]

# A turn of a conversation: `role` and `content`, as chat templates read them.
ChatTurn: TypeAlias = dict[str, str]

SPEAKERS = ("system", "user", "assistant")

# Conversations that are tokenized together.
TOGETHER = 256

# For tokenizers without a template of their own: a title before each turn, the end of a document behind an answer.
PLAIN_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] }}\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)


@dataclass(frozen=True)
class ChatColumns:
    """Names of the columns that hold a conversation.

    Args:
        prompt: Column with the prompt.
        response: Column with its answer.
        messages: Column with a list of turns, which is used if a row has it.
    """

    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"


@dataclass(frozen=True)
class Conversation:
    """Turns, and where they were read.

    Args:
        place: File and row.
        messages: Turns, an answer among them.
    """

    place: str
    messages: list[ChatTurn]

    @property
    def answers(self) -> list[int]:
        """Places of the answers among the turns."""
        return [place for place, message in enumerate(self.messages) if message["role"] == "assistant"]


def read_conversation(row: TableRow, columns: ChatColumns) -> Conversation:
    """Read a conversation from a row.

    Args:
        row: A row of a file or a dataset.
        columns: Names of its columns.

    Returns:
        The conversation.

    Raises:
        ValueError: If a column is missing, a turn is not text, or there is no answer.

    Example:
        >>> row = TableRow("line 1 of 'a.jsonl'", {"prompt": "1 + 1?", "response": "2"})
        >>> read_conversation(row, ChatColumns()).messages[1]
        {'role': 'assistant', 'content': '2'}
    """
    if columns.messages in row.values:
        messages = row.values[columns.messages]
    else:
        messages = [_column_turn(row, "user", columns.prompt), _column_turn(row, "assistant", columns.response)]
    if not isinstance(messages, list):
        raise ValueError(f"Expected a list of turns in '{columns.messages}', but {row.place} has {messages!r:.40}.")
    for message in messages:
        _check_message(row.place, message)
    conversation = Conversation(row.place, messages)
    if not conversation.answers or conversation.answers[0] == 0:
        raise ValueError(f"Expected an answer of role 'assistant' behind a prompt, but {row.place} has none.")
    return conversation


def _column_turn(row: TableRow, role: str, column: str) -> ChatTurn:
    if column not in row.values:
        raise ValueError(
            f"Expected a column '{column}', but {row.place} has {sorted(row.values)}. Set `prompt` and `response`, or "
            "`messages`, to names of columns."
        )
    return {"role": role, "content": row.values[column]}


def _check_message(place: str, message: Any) -> None:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise ValueError(f"Expected turns with `role` and `content`, but {place} has {message!r:.60}.")
    role, content = message["role"], message["content"]
    if role not in SPEAKERS:
        raise ValueError(f"Expected a role out of {', '.join(SPEAKERS)}, but {place} has {role!r:.40}.")
    if not isinstance(content, str) or not content.strip():
        what = "an empty one" if content in (None, "") else repr(content)[:40]
        raise ValueError(f"Expected text as the turn of role '{role}', but {place} has {what}.")


@dataclass(frozen=True)
class Example:
    """The tokens of a conversation.

    Args:
        tokens: Tokens, of shape `(length,)`.
        counted: Which of them the loss counts, of shape `(length,)`.
    """

    tokens: np.ndarray
    counted: np.ndarray

    def cut(self, length: int) -> Example:
        """Return the first `length` tokens."""
        return Example(self.tokens[:length], self.counted[:length])

    @property
    def targets(self) -> int:
        """The number of tokens that are predicted and counted; nothing predicts the first."""
        return int(self.counted[1:].sum())


class Template:
    """A chat template with its tokenizer.

    The answers are where the text with an answer goes on behind the text with the prompt for it. So any template will
    do whose text grows at its end.

    Args:
        tokenizer: A fast tokenizer of transformers.
        template: Jinja text, a file with it, or `plain`; None takes the tokenizer's own.

    Raises:
        ValueError: If there is no template, or the tokenizer does not say where its tokens are.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        if not tokenizer.is_fast:
            raise ValueError("Expected a tokenizer that says where its tokens are, but this one has no fast form.")
        self.tokenizer = tokenizer
        if template is not None:
            tokenizer.chat_template = _read_template(template)
        if tokenizer.chat_template is None:
            raise ValueError(
                "Expected a tokenizer with a chat template, but it has none. Set `template` to 'plain', to Jinja text, "
                "or to a file with it."
            )

    def text(self, place: str, messages: Sequence[ChatTurn], *, prompt: bool = False) -> str:
        """Render turns.

        Args:
            place: Where they were read, for errors.
            messages: Turns.
            prompt: Whether the beginning of an answer follows.

        Returns:
            Text.

        Raises:
            ValueError: If the template fails.
        """
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template may raise what it likes
            raise ValueError(f"Expected turns that the chat template takes, but at {place} it says: {error}") from error

    def prompt(self, conversation: Conversation) -> str:
        """Return the text before the last answer of `conversation`."""
        last = conversation.answers[-1]
        return self.text(conversation.place, conversation.messages[:last], prompt=True)

    def encode(self, conversations: Sequence[Conversation], *, answers_only: bool) -> Iterator[Example]:
        """Yield the tokens of conversations.

        Args:
            conversations: Conversations.
            answers_only: Whether the loss counts answers alone.

        Yields:
            An example per conversation.
        """
        for start in range(0, len(conversations), TOGETHER):
            some = conversations[start : start + TOGETHER]
            texts = [self.text(one.place, one.messages) for one in some]
            encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
            rows = zip(some, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
            for one, text, ids, offsets in rows:
                counted = np.ones(len(ids), dtype=bool)
                if answers_only:
                    counted = _inside(np.asarray(offsets).reshape(-1, 2), self._spans(one, text))
                yield Example(np.asarray(ids, dtype=np.int64), counted)

    def _spans(self, conversation: Conversation, text: str) -> list[tuple[int, int]]:
        """Return where the answers stand in a text, with the token that ends them."""
        spans = []
        for turn in conversation.answers:
            before = self.text(conversation.place, conversation.messages[:turn], prompt=True)
            after = self.text(conversation.place, conversation.messages[: turn + 1])
            if not (after.startswith(before) and text.startswith(after.rstrip())):
                raise ValueError(
                    f"Expected a chat template whose text grows at its end, but at {conversation.place} turn {turn} "
                    "changes the text before it. Set `loss_on` to 'all', or give another `template`."
                )
            spans.append((len(before), len(after.rstrip())))
        return spans


def _inside(offsets: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """Tell which tokens overlap one of the spans of characters."""
    inside = np.zeros(len(offsets), dtype=bool)
    for start, end in spans:
        inside |= (offsets[:, 1] > start) & (offsets[:, 0] < end)
    return inside


def _read_template(template: str) -> str:
    if template == "plain":
        return PLAIN_TEMPLATE
    if "{" in template:
        return template
    file = Path(template).expanduser()
    if not file.is_file():
        raise ValueError(f"Expected `template` to be 'plain', Jinja text or a file with it, but got {template!r}.")
    return file.read_text(encoding="utf-8")
