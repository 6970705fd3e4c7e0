"""Which batch of a fine-tuning recipe fits a GPU of 16, 24 and 40 GB? Counted on fake tensors, without one.

    python -m benchmarks.finetune_memory

Weights, gradients, the state of the optimizer and all that forward and backward passes hold at their peak are counted
at two batches, both longer than a chunk of the loss. Their difference is what a sample adds. A step's own copies are
the bound that `optimizer.memory()` gives. A tenth of the memory, for fragments and kernels, stays free.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import lightning_gluon
from benchmarks.journal import Journal
from benchmarks.memory import counting
from lightning_gluon.tasks import CausalLM, ImageClassifier

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
SIZES = (16e9, 24e9, 40e9)
FREE = 0.1
SAVING = (("gradient_checkpointing", True),)
HALF = (*SAVING, ("dtype", "bfloat16"))


@dataclass(frozen=True)
class Setting:
    """A recipe, a method and options of the model.

    Args:
        model: Folder of the recipes.
        overlays: Files after `base`.
        method: A row of `METHODS`.
        options: Arguments of the module that differ from the recipe's.
    """

    model: str
    overlays: tuple[str, ...] = ()
    method: str = "gluon"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """One line for the table."""
        added = [f"{key} {value}" for key, value in self.options]
        return ", ".join([" + ".join([self.model, *self.overlays]), self.method, *added])


SETTINGS = (
    Setting("qwen2_5", options=SAVING),
    Setting("qwen2_5", ("lora",), options=HALF),
    Setting("qwen2_5"),
    Setting("qwen2_5", method="adamw"),
    Setting("mamba", options=SAVING),
    Setting("vit"),
    Setting("vit", method="adamw"),
    Setting("qwen2_5", ("lora",)),
    Setting("mamba", ("out_proj",), options=SAVING),
    Setting("vit", options=SAVING),
    Setting("mamba"),
    Setting("mamba", method="adamw"),
    Setting("mamba", ("lora",)),
)
LENGTHS = {"qwen2_5": 1024, "mamba": 256}
BATCHES = {"qwen2_5": (2, 4), "mamba": (16, 32), "vit": (1, 2)}
SPARSE = 8  # times the batch where activations are recomputed: with less of them the end of the pass is the peak


def build(setting: Setting) -> Any:
    """Return the module of a recipe on the meta device."""
    given: dict[str, Any] = {}
    for name in ("base", *setting.overlays):
        read = yaml.safe_load((RECIPES / setting.model / f"{name}.yaml").read_text())
        given |= read["model"]["init_args"]
    given |= dict(setting.options)
    if setting.model == "vit":  # as its overlay `finetune` has it, which asks for the weights too
        given |= {"name": "vit_small_patch16_224", "model_kwargs": {}}
    with torch.device("meta"):
        return (ImageClassifier if setting.model == "vit" else CausalLM)(**given)


def loss(setting: Setting, module: Any, batch: int) -> Tensor:
    """Return the loss of a batch of the recipe's shape."""
    if setting.model == "vit":
        images, labels = torch.zeros(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.long)
        return module.loss(module(images).float(), labels)
    return module.mean_loss(torch.zeros(batch, LENGTHS[setting.model] + 1, dtype=torch.long))


@functools.cache
def passes(setting: Setting, batch: int) -> int:
    """Return the bytes that forward and backward passes hold at their peak, weights and gradients among them."""
    module = build(setting)
    with counting() as live:
        module = module.to_empty(device="cpu")
        tie(module)
        module.train()
        for tensor in (*module.parameters(), *module.buffers()):
            live.add(tensor)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(setting, module, batch)
        value.backward()
        return live.peak


def tie(module: nn.Module) -> None:
    """Tie the weights that `to_empty` has given tensors of their own."""
    for part in module.modules():
        if hasattr(part, "tie_weights"):
            part.tie_weights()


def measure(setting: Setting) -> dict[str, Any]:
    """Return what a setting holds, and the largest batch by size of the GPU."""
    factor = SPARSE if SAVING[0] in setting.options else 1
    small, large = (factor * batch for batch in BATCHES[setting.model])
    model = replace(setting, method="gluon")  # passes do not depend on it
    first, second = passes(model, small), passes(model, large)
    sample = (second - first) / (large - small)
    module = build(setting)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    memory = lightning_gluon.Gluon(module, lr=1e-3, method=setting.method).memory()
    weights = sum(parameter.nbytes for parameter in module.parameters())
    gradients = sum(parameter.nbytes for parameter in trained)
    step = weights + gradients + memory["state_bytes"] + memory["transient_bytes"]
    fixed = first - small * sample + memory["state_bytes"]
    found = {
        "trained": sum(parameter.numel() for parameter in trained),
        "weights": weights,
        "state": memory["state_bytes"],
        "step": step,
        "fixed": fixed,
        "sample": sample,
    }
    return found | {"batches": [fitting(found, (1 - FREE) * size) for size in SIZES]}


def fitting(found: dict[str, Any], room: float) -> int:
    """Return the largest batch that fits; 0 if none does."""
    if found["step"] > room:
        return 0
    return max(0, int((room - found["fixed"]) // found["sample"]))


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table as Markdown."""
    sizes = " | ".join(f"{size / 1e9:g} GB" for size in SIZES)
    yield f"| recipe, method | trained | weights and state, GB | GB per sample | {sizes} |"
    yield "|---" * (4 + len(SIZES)) + "|"
    for row in rows:
        batches = " | ".join(str(batch) for batch in row["batches"])
        held = (row["weights"] + row["state"]) / 1e9
        yield f"| {row['name']} | {row['trained'] / 1e6:.1f} M | {held:.2f} | {row['sample'] / 1e9:.2f} | {batches} |"


def main() -> None:
    """Count what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "finetune_memory.jsonl")
    journal = Journal(parser.parse_args().output)
    for setting in SETTINGS:
        if journal.find("run", name=setting.name) is None:
            journal.append("run", name=setting.name, **measure(setting))
    print("\n".join(lines(journal.of("run"))))


if __name__ == "__main__":
    main()
