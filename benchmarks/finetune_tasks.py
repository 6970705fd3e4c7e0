"""Pretrained models, and what they are tuned on: batches, a loss, and what is measured before and after.

`chat`, `gsm8k` and `python` tune a language model from a folder; `encoder` sorts snippets of Python sources by their
package. `vit` and `mamba` are small and pretrained here: on half of CIFAR-10's classes, and on text.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import random
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lightning_gluon
from lightning_gluon.tasks import CausalLM, ChatData, ImageClassifier, ImageData, TextData

Measures = dict[str, float]

LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
IGNORED = -100
WORDS = (
    "river", "stone", "cloud", "paper", "green", "window", "garden", "silver", "coffee", "planet", "summer", "bridge",
    "music", "forest", "winter",
)  # fmt: skip
PACKAGES = (
    "asyncio", "concurrent", "ctypes", "curses", "email", "encodings", "idlelib", "importlib", "json", "logging",
    "multiprocessing", "sqlite3", "tkinter", "unittest", "urllib", "xml",
)  # fmt: skip


def autocast() -> Any:
    """Return the precision of all runs: matrix products in bfloat16, weights and steps in float32."""
    return torch.autocast("cpu", torch.bfloat16)


@dataclass
class Problem:
    """A model and what it is tuned on.

    Args:
        given: The command line: folders of models and data.
    """

    given: argparse.Namespace

    steps: ClassVar[int] = 20

    def build(self, tune: str) -> nn.Module:
        """Return the pretrained model, prepared to be tuned in a way."""
        raise NotImplementedError

    def batches(self, seed: int) -> Iterator[Any]:
        """Yield training batches."""
        raise NotImplementedError

    def loss(self, module: Any, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def measure(self, module: Any) -> Measures:
        """Return `loss` on held-out data, and what else is measured."""
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------ language models


class Language(Problem):
    """A causal language model; forgetting is the perplexity of text it is not tuned on."""

    rows: ClassVar[int] = 16  # held-out batches
    kinds: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "lora": {"lora": {**LORA, "target_modules": "all-linear"}},
    }

    def build(self, tune: str) -> nn.Module:
        """Return the model of the folder."""
        return CausalLM(self.given.model, pretrained=True, **self.kinds[tune])

    @functools.cached_property
    def data(self) -> Any:
        """The data, set up."""
        data = self.read()
        data.prepare_data()
        data.setup("fit")
        return data

    def read(self) -> Any:
        """Return the data module."""
        raise NotImplementedError

    @functools.cached_property
    def other(self) -> TextData:
        """Text to measure forgetting on."""
        bounds = {"max_bytes": 200_000, "val_fraction": 0.3, "max_val_sequences": 4}
        data = TextData("files", self.given.text, tokenizer=self.given.model, seq_len=128, batch_size=4, **bounds)
        data.prepare_data()
        data.setup("fit")
        return data

    def batches(self, seed: int) -> Iterator[Any]:
        """Yield batches in an order that is a function of the seed."""
        data = copy.copy(self.data)
        data.seed = seed
        loader = data.train_dataloader()
        return chain.from_iterable(iter(loader) for _ in range(self.steps))

    def loss(self, module: Any, batch: Any) -> Tensor:
        """Return the mean loss over the answers."""
        return module.mean_loss(batch)

    def measure(self, module: Any) -> Measures:
        """Return loss, accuracy of tokens, share of answers without a wrong token, and perplexity of other text."""
        found = score(module, islice(self.data.val_dataloader(), self.rows))
        other = score(module, self.other.val_dataloader())
        return {**found, "other_perplexity": math.exp(other["loss"])}


@torch.no_grad()
def score(module: Any, batches: Iterable[Any]) -> Measures:
    """Return mean loss, token accuracy, and the share of rows whose counted tokens are all the most likely ones.

    The latter is what greedy decoding would answer word for word.
    """
    module.eval()
    nats = tokens = hits = rows = whole = 0.0
    for batch in batches:
        inputs = batch[:, :-1] if isinstance(batch, Tensor) else batch["input_ids"][:, :-1]
        targets = batch[:, 1:] if isinstance(batch, Tensor) else batch["labels"][:, 1:]
        with autocast():
            logits = module(inputs).float()
        counted = targets != IGNORED
        right = (logits.argmax(-1) == targets) | ~counted
        nats += cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        tokens += counted.sum().item()
        hits += (right & counted).sum().item()
        rows += len(targets)
        whole += right.all(1).sum().item()
    return {"loss": nats / tokens, "accuracy": hits / tokens, "exact": whole / rows}


def _sum(draw: random.Random) -> tuple[str, str]:
    first, second = draw.randint(10, 99), draw.randint(2, 9)
    return f"What is {first} + {second}?", f"{first + second}"


def _date(draw: random.Random) -> tuple[str, str]:
    day = date(2000, 1, 1) + timedelta(days=draw.randrange(9000))
    return f"Write {day.strftime('%B')} {day.day}, {day.year} as year-month-day.", day.isoformat()


def _form(draw: random.Random) -> tuple[str, str]:
    words = draw.sample(WORDS, 3)
    return f"List in capitals, with slashes: {', '.join(words)}.", "/".join(words).upper()


TEMPLATES: tuple[Callable[[random.Random], tuple[str, str]], ...] = (_sum, _date, _form)


def templates(seed: int, count: int) -> list[str]:
    """Return lines of JSON with sums, dates and rules of form, whose answers can be checked."""
    draw = random.Random(seed)
    lines = []
    for number in range(count):
        question, answer = TEMPLATES[number % len(TEMPLATES)](draw)
        roles = {"system": "Answer briefly.", "user": question, "assistant": answer}
        turns = [{"role": role, "content": content} for role, content in roles.items()]
        lines.append(json.dumps({"messages": turns}))
    return lines


class Chat(Language):
    """Questions from templates: sums, dates, rules of form."""

    steps: ClassVar[int] = 16
    rows: ClassVar[int] = 8

    def read(self) -> Any:
        """Write and read the conversations."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{split}.jsonl" for split in ("train", "val")]
            for file, lines in zip(files, (templates(0, 600), templates(1, 60)), strict=True):
                file.write_text("\n".join(lines))
            data = ChatData(str(files[0]), self.given.model, val_path=str(files[1]), batch_size=8, seed=0)
            data.setup("fit")
            return data


class Gsm8k(Language):
    """Problems in words with worked answers: columns of other names, loss on the answers."""

    rows: ClassVar[int] = 6

    def read(self) -> Any:
        """Read the problems."""
        files = [str(Path(self.given.gsm8k) / f"{split}.jsonl") for split in ("train", "test")]
        columns = {"prompt": "question", "response": "answer"}
        bounds = {"seq_len": 224, "batch_size": 2, "max_examples": 600, "seed": 0}
        return ChatData(files[0], self.given.model, val_path=files[1], **columns, **bounds)


class Python(Language):
    """Sources of the standard library."""

    rows: ClassVar[int] = 4

    def read(self) -> Any:
        """Read the sources."""
        bounds = {"max_bytes": 600_000, "val_fraction": 0.1, "max_val_sequences": 16}
        return TextData("python", tokenizer=self.given.model, seq_len=128, batch_size=4, seed=0, **bounds)


class Mamba(Language):
    """A Mamba of .3 M parameters, pretrained here on text by AdamW and tuned on Python sources."""

    steps: ClassVar[int] = 60
    kinds: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "out_proj": {"targets": ["out_proj"]},
        "lora": {"lora": {**LORA, "target_modules": ["in_proj"]}},
    }
    config: ClassVar[dict[str, Any]] = {"hidden_size": 96, "num_hidden_layers": 4, "state_size": 8, "vocab_size": 512}
    size: ClassVar[dict[str, Any]] = {"tokenizer": "bytes", "seq_len": 64, "batch_size": 8, "seed": 0}

    def build(self, tune: str) -> nn.Module:
        """Return the model, pretrained once and kept."""
        folder = Path(self.given.cache) / "mamba"
        if not folder.exists():
            net = CausalLM("mamba", self.config)
            batches = chain.from_iterable(iter(self.other.train_dataloader()) for _ in range(9))
            pretrain(net, ((net.mean_loss, batch) for batch in islice(batches, self.given.pretraining)))
            net.net.save_pretrained(folder)
        return CausalLM(str(folder), pretrained=True, **self.kinds[tune])

    def read(self) -> Any:
        """Read the sources."""
        return TextData("python", max_bytes=600_000, val_fraction=0.1, max_val_sequences=128, **self.size)

    @functools.cached_property
    def other(self) -> TextData:
        """The text of the pretraining, and its held-out end."""
        data = TextData("files", self.given.text, max_bytes=1_000_000, max_val_sequences=128, **self.size)
        data.prepare_data()
        data.setup("fit")
        return data


def pretrain(module: Any, work: Iterable[tuple[Callable[[Any], Tensor], Any]]) -> None:
    """Train a new model by AdamW, with a cosine, as others pretrain theirs."""
    parts = list(work)
    configured = lightning_gluon.configure_optimizers(
        module, "adamw", lr=2e-3, schedule="cosine", warmup=0.1, total_steps=len(parts)
    )
    for loss, batch in parts:
        take_step(module, configured, lambda loss=loss, batch=batch: loss(batch))


def take_step(module: Any, configured: Any, loss: Callable[[], Tensor]) -> float:
    """Take a step along the clipped gradient and return the loss before it."""
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    with autocast():
        value = loss()
    value.backward()
    nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return value.item()


# ------------------------------------------------------------------------------------------------ classifiers


class Classifier(Problem):
    """A network with a new head on a few classes."""

    batch: ClassVar[int] = 16
    kinds: ClassVar[dict[str, Any]] = {}

    @functools.cached_property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Inputs and classes of `train` and `val`."""
        raise NotImplementedError

    def batches(self, seed: int) -> Iterator[Any]:
        """Yield random examples."""
        inputs, classes = self.splits["train"]
        generator = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(len(inputs), (self.batch,), generator=generator)
            yield inputs[rows], classes[rows]

    def logits(self, module: Any, inputs: Tensor) -> Tensor:
        """Return the logits."""
        raise NotImplementedError

    def loss(self, module: Any, batch: Any) -> Tensor:
        """Return the cross-entropy."""
        inputs, classes = batch
        return cross_entropy(self.logits(module, inputs).float(), classes)

    @torch.no_grad()
    def measure(self, module: Any) -> Measures:
        """Return loss and accuracy on held-out examples."""
        module.eval()
        inputs, classes = self.splits["val"]
        with autocast():
            logits = torch.cat([self.logits(module, part).float() for part in inputs.split(64)])
        accuracy = (logits.argmax(-1) == classes).float().mean().item()
        return {"loss": cross_entropy(logits, classes).item(), "accuracy": accuracy}

    def tuned(self, net: nn.Module, tune: str) -> nn.Module:
        """Return a network with adapters, or as it is."""
        if tune == "full":
            return net
        from peft import LoraConfig, get_peft_model

        return get_peft_model(net, LoraConfig(**LORA, **self.kinds))


class Encoder(Classifier):
    """A sentence encoder of 22 M parameters that tells which package of the standard library a snippet is from."""

    steps: ClassVar[int] = 20
    kinds: ClassVar[dict[str, Any]] = {
        "target_modules": ["query", "key", "value", "dense"],
        "exclude_modules": ".*pooler.*",
        "modules_to_save": ["classifier"],
    }
    length: ClassVar[int] = 40

    def build(self, tune: str) -> nn.Module:
        """Return the encoder of the folder with a new head."""
        from transformers import AutoModelForSequenceClassification

        labels = len(PACKAGES)
        net = AutoModelForSequenceClassification.from_pretrained(self.given.model, num_labels=labels)
        return self.tuned(net.float(), tune)

    @functools.cached_property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Snippets of 40 tokens, no file in both splits, at most 40 of a package in training and 12 held out."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.given.model)
        found: dict[str, list[tuple[Tensor, int]]] = {"train": [], "val": []}
        for label, package in enumerate(PACKAGES):
            files = sorted((Path(sysconfig.get_paths()["stdlib"]) / package).rglob("*.py"))
            for split, most in (("train", 40), ("val", 12)):
                own = [file for number, file in enumerate(files) if (number % 4 == 3) == (split == "val")]
                snippets = list(islice(self._snippets(tokenizer, own), 20 * most))
                random.Random(label).shuffle(snippets)
                found[split] += [(snippet, label) for snippet in snippets[:most]]
        return {split: (torch.stack(rows), torch.tensor(labels)) for split, (rows, labels) in _columns(found)}

    def _snippets(self, tokenizer: Any, files: Iterable[Path]) -> Iterator[Tensor]:
        inner = self.length - 2
        for file in files:
            ids = tokenizer(file.read_text(errors="replace")[:6000], add_special_tokens=False)["input_ids"]
            for start in range(0, len(ids) - inner, inner):
                yield torch.tensor([tokenizer.cls_token_id, *ids[start : start + inner], tokenizer.sep_token_id])

    def logits(self, module: Any, inputs: Tensor) -> Tensor:
        """Return the logits of the packages."""
        return module(input_ids=inputs).logits


def _columns(found: dict[str, list[tuple[Tensor, int]]]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for split, rows in found.items():
        inputs, labels = zip(*rows, strict=True)
        yield split, (inputs, labels)


class Vit(Classifier):
    """A ViT of .5 M parameters, pretrained here on the first five classes of CIFAR-10, tuned on the other five.

    Forgetting is the accuracy on the first five, with the head they were learned with.
    """

    steps: ClassVar[int] = 80
    batch: ClassVar[int] = 32
    kinds: ClassVar[dict[str, Any]] = {
        "target_modules": ["qkv", "proj", "fc1", "fc2"],
        "exclude_modules": ".*patch_embed.*",
        "modules_to_save": ["head"],
    }
    shape: ClassVar[dict[str, Any]] = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}

    def build(self, tune: str) -> nn.Module:
        """Return the network, pretrained once and kept, with a new head."""
        file = Path(self.given.cache) / "vit.pt"
        net = ImageClassifier("vit_tiny_patch16_224", 5, model_kwargs=self.shape).net
        if not file.exists():
            batches = islice(self._examples("first", 0), 2 * self.given.pretraining)
            pretrain(net, ((functools.partial(self.loss, net), batch) for batch in batches))
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(net.state_dict(), file)
        net.load_state_dict(torch.load(file))
        nn.init.zeros_(net.head.weight)
        return self.tuned(net, tune)

    @functools.cached_property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Images of the other classes; `first` and `first val` have those of the pretraining."""
        data: Any = ImageData("parquet", self.given.images, val_fraction=0.04, seed=0)
        data.setup("fit")
        found = {}
        for split, most in (("train", 8000), ("val", 600)):
            part = data.splits[split]
            for name, first in (("", 5), ("first", 0)):
                rows = torch.nonzero((part.labels >= first) & (part.labels < first + 5))[:, 0][:most]
                pixels = part.images(rows.tolist(), None).float() / 255
                key = " ".join(word for word in (name, split if split == "val" or not name else "") if word)
                found[key] = ((pixels - 0.47) / 0.25, part.labels[rows] - first)
        return found

    def _examples(self, split: str, seed: int) -> Iterator[Any]:
        inputs, classes = self.splits[split]
        generator = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(len(inputs), (self.batch,), generator=generator)
            yield inputs[rows], classes[rows]

    def logits(self, module: Any, inputs: Tensor) -> Tensor:
        """Return the logits of the classes."""
        return module(inputs)

    @torch.no_grad()
    def measure(self, module: Any) -> Measures:
        """Return loss and accuracy on the new classes, and the accuracy on the old ones with their head."""
        found = super().measure(module)
        net = module.get_base_model() if hasattr(module, "get_base_model") else module
        known = torch.load(Path(self.given.cache) / "vit.pt")
        inputs, classes = self.splits["first val"]
        pooled = torch.cat([net.forward_head(net.forward_features(part), pre_logits=True) for part in inputs.split(64)])
        logits = pooled @ known["head.weight"].T + known["head.bias"]
        return {**found, "other_accuracy": (logits.argmax(-1) == classes).float().mean().item()}


PROBLEMS: dict[str, type[Problem]] = {
    "encoder": Encoder,
    "chat": Chat,
    "gsm8k": Gsm8k,
    "python": Python,
    "vit": Vit,
    "mamba": Mamba,
}
