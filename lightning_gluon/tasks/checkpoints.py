"""Checkpoints that stand alone: configuration, tokenizer and metrics beside the weights, and of adapters only those."""

from __future__ import annotations

import pkgutil
import tempfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from lightning_gluon.extras import require

__all__ = [
    "add_frozen",
    "drop_frozen",
    "fingerprint",
    "load_task",
    "plain_entries",
    "read_tokenizer",
    "task_notes",
    "tokenizer_files",
]

# Lightning's: weights, arguments of the module, state of everything.
Checkpoint: TypeAlias = dict[str, Any]

# Entries of a configuration that say how it was saved, not what the model is.
BOOKKEEPING = ("model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures")

# Modules that such checkpoints are of, imported when one is read.
MODULES = {
    "CausalLM": "lightning_gluon.tasks.language:CausalLM",
    "ImageClassifier": "lightning_gluon.tasks.image:ImageClassifier",
}

VALUES_READ = 64  # values per weight that a fingerprint reads


def plain_entries(config: Any) -> dict[str, Any]:
    """Return the entries of a configuration of transformers that differ from the defaults of its class.

    Args:
        config: The configuration.

    Returns:
        Plain values.
    """
    default = type(config)()
    entries = config.to_diff_dict()
    return {key: entries[key] for key in entries if key not in BOOKKEEPING and hasattr(default, key)}


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """Return the files of a tokenizer of transformers: text by name."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_text(encoding="utf-8") for file in sorted(Path(folder).iterdir())}


def read_tokenizer(files: dict[str, str]) -> Any:
    """Return the tokenizer that `tokenizer_files` has taken apart; None if there are no `files`."""
    if not files:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        return require("transformers").AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def fingerprint(net: nn.Module) -> int:
    """Return a checksum of some values of every frozen weight.

    Args:
        net: A model.

    Returns:
        A number that tells one base model from another; 0 if a weight is cut over ranks.
    """
    checksum = 0
    for parameter in net.parameters():
        if hasattr(parameter, "to_local"):
            return 0
        if not parameter.requires_grad:
            values = parameter.detach().flatten()[:VALUES_READ].float().cpu()
            checksum = zlib.crc32(values.numpy().tobytes(), checksum)
    return checksum


def drop_frozen(module: nn.Module, state: dict[str, Any]) -> None:
    """Remove the frozen weights of `module` from a `state`, in place, with what belongs to their quantisation."""
    kept = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    kept |= {name for name, value in module.named_parameters(remove_duplicate=False) if value.requires_grad}
    for key in set(state) - kept:
        del state[key]


def add_frozen(module: nn.Module, state: dict[str, Any]) -> None:
    """Add the frozen weights of `module` to a `state` that lacks them, in place."""
    for key, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter) and not value.requires_grad:
            state.setdefault(key, value.detach())


def task_notes(module: LightningModule) -> dict[str, Any]:
    """Return what a model card says of a run, in plain values: the module, the data, the metrics so far.

    Args:
        module: A module with its Trainer.

    Returns:
        Values by name.
    """
    trainer = module.trainer
    data: LightningDataModule | None = getattr(trainer, "datamodule", None)
    described = {"class": type(data).__name__}
    for name in ("source", "path"):
        value = getattr(data, name, None)
        if value is not None:
            described[name] = str(value)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"class": type(module).__name__, "data": described, "metrics": metrics, "step": trainer.global_step}


def load_task(file: str) -> tuple[LightningModule, Checkpoint]:
    """Load a module of this package from a checkpoint. No code in the file is run.

    Args:
        file: A checkpoint.

    Returns:
        The module, in evaluation mode on the CPU, and the checkpoint.

    Raises:
        ValueError: If it is no checkpoint of a module of `lightning_gluon.tasks`.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        place = MODULES[checkpoint["task"]["class"]]
        given = dict(checkpoint["hyper_parameters"])
    except (EOFError, KeyError, OSError, RuntimeError, TypeError, UnpicklingError) as error:
        raise ValueError(
            f"Expected a checkpoint of CausalLM or ImageClassifier, but '{file}' is none that can be read "
            f"({type(error).__name__})."
        ) from error
    for key in ("_instantiator", "_class_path"):
        given.pop(key, None)
    module = pkgutil.resolve_name(place)(**given)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval(), checkpoint
