"""nanoGPT's character model of Shakespeare in the size of its CPU command: AdamW's 1.88 against ours.

    python -m benchmarks.anchors.shakespeare --path FOLDER_WITH_INPUT_TXT

Published by nanoGPT: a validation loss of 1.88 after 2,000 iterations, about 3 minutes on a laptop. Four layers,
four heads, width 128, windows of 64, batches of 12, no dropout, AdamW with betas (.9, .99), decay .1 on matrices,
clipping at 1, a rate of 1e-3 after 100 steps of warmup and a cosine to a tenth of it. The row `as published` is
this, with a cosine to zero.

The model is nanoGPT's: tied tables, no biases, smaller initial weights where a branch ends. nanoGPT's loss is the
mean of 20 random batches of validation text; ours is that of as many windows, spread evenly over all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.anchors import runner
from benchmarks.anchors.runner import Batch, Row

BLOCK, BATCH, WINDOWS = 64, 12, 240
RATES = (0.01, 0.02)
NANOGPT = {**runner.COSINE, "betas": (0.9, 0.99), "weight_decay": {"hidden": 0.1, "embedding": 0.1, "head": 0.1}}


class Block(nn.Module):
    """A block of nanoGPT: attention and an MLP behind layer norms, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.fc, self.out = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream behind both branches."""
        parts = self.qkv(self.ln_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.out(functional.gelu(self.fc(self.ln_2(x))))


class CharacterModel(nn.Module):
    """nanoGPT's model: 0.8 M parameters at four layers of width 128."""

    def __init__(self, characters: int, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(characters, width), nn.Embedding(BLOCK, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width, bias=False)
        self.lm_head = nn.Linear(width, characters, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends = name.endswith(("proj.weight", "out.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if ends else 0.02)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next character."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class Shakespeare(runner.Task):
    """The task."""

    name = "shakespeare"
    summary = "nanoGPT (4 x 128) on Shakespeare's characters, batch 12 x 64"
    unit = "validation loss"
    evaluations = 2_000
    published: ClassVar[Mapping[str, str]] = {"adamw, as published": "1.88"}
    rows: ClassVar[Mapping[str, Row]] = {
        "adamw, as published": Row("adamw", (0.001,), NANOGPT),
        "adamw": Row("adamw", (0.002, 0.004), NANOGPT),
        **runner.family(RATES, "gluon-nesterov", "muon", "gluon"),
        "auto": runner.auto(),
    }
    splits = ("val",)
    points = 10
    seeds = (1, 2)
    shares: ClassVar[Mapping[float, tuple[str, ...]]] = {0.5: ("gluon-nesterov",), 0.85: ("gluon-nesterov",)}

    @cached_property
    def text(self) -> dict[str, Tensor]:
        """Return the characters' places in the alphabet, by split: the first 90 % and the rest."""
        content = (self.path / "input.txt").read_text()
        places = {character: place for place, character in enumerate(sorted(set(content)))}
        tokens = torch.tensor([places[character] for character in content])
        end = int(0.9 * len(tokens))
        return {"train": tokens[:end], "val": tokens[end:]}

    @property
    def characters(self) -> int:
        """Return the size of the alphabet."""
        return 1 + int(max(part.max() for part in self.text.values()))

    def net(self, **options: Any) -> nn.Module:
        """Return the model."""
        return CharacterModel(self.characters, **options)

    def batches(self, seed: int, steps: int) -> Iterator[Batch]:
        """Yield random windows."""
        generator = torch.Generator().manual_seed(seed)
        text = self.text["train"]
        for _ in range(steps):
            yield windows(text, torch.randint(len(text) - BLOCK, (BATCH,), generator=generator))

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy."""
        return functional.cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())

    def score(self, net: nn.Module, split: str) -> float:
        """Return the loss of windows of validation text; there is no third split."""
        text = self.text[split]
        return float(self.loss(net, windows(text, torch.linspace(0, len(text) - BLOCK - 1, WINDOWS).long())))


def windows(text: Tensor, starts: Tensor) -> Batch:
    """Return windows of the text, and the same one character later."""
    rows = text[starts[:, None] + torch.arange(BLOCK + 1)]
    return rows[:, :-1], rows[:, 1:]


if __name__ == "__main__":
    runner.main(Shakespeare, __doc__)
