"""Instruction data: which tokens count, what shares a row, what is held out, what bad rows say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from lightning_gluon.tasks import CausalLM, ChatData
from lightning_gluon.tasks.batches import IGNORED
from lightning_gluon.tasks.data.conversations import Example
from lightning_gluon.tasks.data.packing import collate, pack
from tests.tasks._chat import CHATML, TINY, save_tokenizer, sums, write_rows

DIALOGUE = {
    "messages": [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four ä"},
    ]
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def chat(tmp_path: Path, tokenizer: str, rows: list[Any], **options: Any) -> ChatData:
    data = ChatData(
        write_rows(tmp_path / "rows.jsonl", rows), tokenizer, **{"val_fraction": 0, "batch_size": 1, **options}
    )
    data.setup("fit")
    return data


def counted(data: ChatData, row: int = 0) -> str:
    """Return the text that the loss counts in a row."""
    (example,) = data.rows["train"][row]
    return data.pretrained_tokenizer.decode(example.tokens[example.counted])


def test_the_loss_counts_answers_and_their_ends(tmp_path: Path, tokenizer: str) -> None:
    data = chat(tmp_path, tokenizer, [DIALOGUE, {"prompt": "1 + 1?", "response": " 2"}])
    assert counted(data) == "two<|im_end|>four ä<|im_end|>"
    assert counted(data, 1) == " 2<|im_end|>"
    batch = collate(data.rows["train"], filler=0)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"] != IGNORED).sum() == sum(example.counted.sum() for (example,) in data.rows["train"])
    everything = chat(tmp_path, tokenizer, [DIALOGUE], loss_on="all")
    assert counted(everything).startswith("<|im_start|>system\nShort.<|im_end|>")


def test_columns_have_any_name_and_files_any_kind(tmp_path: Path, tokenizer: str) -> None:
    table = pyarrow.table({"question": ["1 + 1?"], "answer": ["2"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    data = ChatData(str(tmp_path), tokenizer, prompt="question", response="answer", val_fraction=0)
    data.setup("fit")
    assert counted(data) == "2<|im_end|>"


def test_the_plain_template_needs_no_chat_tokenizer(tmp_path: Path) -> None:
    bare = save_tokenizer(tmp_path / "bare", template=None)
    with pytest.raises(ValueError, match=r"a chat template, but it has none. Set `template` to 'plain'"):
        chat(tmp_path, bare, sums(1))
    data = chat(tmp_path, bare, sums(1), template="plain")
    assert counted(data) == "0<|end|>"
    (example,) = data.rows["train"][0]
    assert data.pretrained_tokenizer.decode(example.tokens) == "### user\n0 + 0\n### assistant\n0<|end|>\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, r"a column 'response', but line 2 of '.*rows.jsonl' has \['prompt'\]. Set `prompt`"),
        ({"prompt": "a", "response": ""}, r"text as the turn of role 'assistant', but line 2 .* has an empty one"),
        ({"prompt": "a", "response": " \n"}, r"turn of role 'assistant', but line 2"),
        ({"prompt": "a", "response": 3}, r"turn of role 'assistant', but line 2 of .* has 3"),
        ({"messages": "hello"}, r"a list of turns in 'messages', but line 2 .* has 'hello'"),
        ({"messages": [{"role": "user"}]}, r"turns with `role` and `content`, but line 2"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"a role out of system, user, assistant, but line 2 .*'bot'"),
        ({"messages": DIALOGUE["messages"][:2]}, r"an answer of role 'assistant' behind a prompt, but line 2"),
        ({"messages": DIALOGUE["messages"][2:3]}, r"an answer of role 'assistant' behind a prompt, but line 2"),
        ("{", r"one JSON object per line, but line 2"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, tokenizer: str, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chat(tmp_path, tokenizer, [DIALOGUE, row])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system') }}", r"that the chat template takes, but at line 1 of .* no system"),
        ("{{ messages | length }}", r"text grows at its end, but at line 1 of .* turn 2 changes .* Set `loss_on`"),
        ("no_such_file", r"`template` to be 'plain', Jinja text or a file with it, but got 'no_such_file'"),
    ],
)
def test_templates_that_fail(tmp_path: Path, tokenizer: str, template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chat(tmp_path, tokenizer, [DIALOGUE], template=template)


def test_truncation_is_reported(tmp_path: Path, tokenizer: str) -> None:
    long = {"prompt": "x" * 100, "response": "lost"}
    cut = {"prompt": "y", "response": "z" * 100}
    with pytest.warns(
        UserWarning, match=r"Of 3 examples .* 2 are longer than seq_len=64 and are cut; 1 keep no answer"
    ):
        data = chat(tmp_path, tokenizer, [long, cut, *sums(1)], seq_len=64)
    assert [len(example.tokens) for (example,) in data.rows["train"]] == [64, 27]
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none is left to train on"):
        chat(tmp_path, tokenizer, [long], seq_len=64)


def test_equal_conversations_are_held_out_together(tmp_path: Path, tokenizer: str) -> None:
    data = chat(tmp_path, tokenizer, sums(60) * 2, val_fraction=0.3)
    train = {bytes(example.tokens) for (example,) in data.rows["train"]}
    held = {bytes(example.tokens) for (example,) in data.rows["val"]}
    assert train
    assert held
    assert train.isdisjoint(held)
    few = chat(tmp_path, tokenizer, sums(3), val_fraction=0.01)
    assert [len(few.rows[split]) for split in ("train", "val")] == [2, 1]


def test_prompts_to_predict(tmp_path: Path, tokenizer: str) -> None:
    data = chat(tmp_path, tokenizer, [*sums(1), DIALOGUE], val_path=write_rows(tmp_path / "val.jsonl", [DIALOGUE]))
    assert len(data.rows["train"]) == 1  # what is held out is not trained on
    (batch,) = data.predict_dataloader()
    assert batch["references"] == ["four ä"]
    assert batch["prompts"][0].endswith("<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n")


# ------------------------------------------------------------------------------------------------------------- packing


def test_rows_are_filled_and_never_over() -> None:
    lengths = np.random.randint(1, 50, 200).tolist()
    rows = pack(lengths, 64)
    assert sorted(example for row in rows for example in row) == list(range(200))
    filled = [sum(lengths[example] for example in row) for row in rows]
    assert max(filled) <= 64
    assert sum(filled) > 0.95 * 64 * len(rows)


def test_packed_documents_do_not_see_each_other() -> None:
    model = CausalLM("qwen2", TINY).eval()
    documents = [torch.randint(0, 300, (length,)) for length in (5, 9, 4)]
    examples = [Example(tokens.numpy(), np.ones(len(tokens), dtype=bool)) for tokens in documents]
    apart = [model.score(collate([[example]], filler=0)) for example in examples]
    together = model.score(collate([examples[:2], examples[2:]], filler=0, width=16))
    torch.testing.assert_close(together.nats, sum(one.nats for one in apart))
    assert together.tokens == sum(one.tokens for one in apart) == 4 + 8 + 3
    packed = collate([examples], filler=0, width=18)
    crossing = model.score({name: packed[name] for name in ("input_ids", "labels")})  # no positions: one document
    assert abs(crossing.nats - together.nats) > 1e-3


def test_padding_changes_nothing() -> None:
    model = CausalLM("qwen2", TINY).eval()
    short, long = (Example(np.arange(length), np.arange(length) % 2 == 0) for length in (4, 11))
    apart = [model.score(collate([[example]], filler=0)) for example in (short, long)]
    together = model.score(collate([[short], [long]], filler=7))
    torch.testing.assert_close(together.nats, apart[0].nats + apart[1].nats)
    mean = model.mean_loss(collate([[short], [long]], filler=7))
    torch.testing.assert_close(mean, together.nats / together.tokens)


@pytest.mark.parametrize("name", ["mamba", "qwen3_next"])
def test_models_with_a_state_refuse_packing(tmp_path: Path, tokenizer: str, name: str) -> None:
    from lightning_gluon.tasks.hub import check_packing

    with torch.device("meta"):
        config = {"vocab_size": 300, "num_hidden_layers": 4}
        net = CausalLM(name, {**config, "num_experts": 2} if name == "qwen3_next" else config).net
    with pytest.raises(ValueError, match=r"stays inside a document with packing, but \w+ carries a state"):
        check_packing(net)


def test_a_chunked_loss_counts_the_same(tmp_path: Path, tokenizer: str) -> None:
    data = chat(tmp_path, tokenizer, sums(6), packing=True, seq_len=100)
    batch = collate(data.rows["train"], filler=0, width=100)
    whole, chunked = CausalLM("qwen2", TINY), CausalLM("qwen2", TINY, loss_chunk=16)
    chunked.load_state_dict(whole.state_dict())
    torch.testing.assert_close(whole.mean_loss(batch), chunked.mean_loss(batch))
    for one, other in zip(whole.score(batch), chunked.score(batch), strict=True):
        torch.testing.assert_close(one, other)


def test_templates_are_files_too(tmp_path: Path, tokenizer: str) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(re.sub("im_start", "pad", CHATML))
    data = chat(tmp_path, tokenizer, sums(1), template=str(file))
    assert data.template.text("", DIALOGUE["messages"][:1]).startswith("<|pad|>system")
