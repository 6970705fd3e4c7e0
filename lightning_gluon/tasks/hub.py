"""Causal language models by configuration or hub id, with what makes them fast where it is installed."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from lightning_gluon.configurations import configuration
from lightning_gluon.extras import require

__all__ = ["add_lora", "build_causal_lm"]


def build_causal_lm(name: str, config: dict[str, Any], *, pretrained: bool) -> Any:
    """Build a causal language model.

    Mamba runs on mambapy's parallel scan where mambapy is installed and mamba-ssm's kernels are not.

    Args:
        name: A model type of transformers, a hub id or a local folder.
        config: Entries of the configuration.
        pretrained: Whether to load weights.

    Returns:
        The model, in float32.

    Raises:
        ValueError: If the model type is unknown, an entry does not exist, or a model type is to be loaded with weights.
        ConnectionError: If a hub id is not in the local cache and the hub cannot be reached.
    """
    transformers = require("transformers")
    if "/" not in name and not Path(name).is_dir():
        _check_type(name, pretrained=pretrained)
    try:
        loaded = configuration(name, config)
    except ConnectionError as error:
        raise ConnectionError(_without_network(name, error.__cause__ or error)) from error
    if "use_mambapy" not in config:
        _choose_scan(loaded)
    if not pretrained:
        return transformers.AutoModelForCausalLM.from_config(loaded, dtype="float32", trust_remote_code=False)
    try:
        net = transformers.AutoModelForCausalLM.from_pretrained(
            name, config=loaded, dtype="float32", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConnectionError(_without_network(name, error)) from error
    # It comes in evaluation mode, which Lightning leaves as it is: no dropout, no recomputation of activations.
    return net.train()


def _check_type(name: str, *, pretrained: bool) -> None:
    """Raise unless a name that is neither hub id nor folder is a type of causal language models, without weights."""
    auto = require("transformers").models.auto
    causal = auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    near = f"Similar model types: {difflib.get_close_matches(name, causal, n=5, cutoff=0.3)}."
    if name not in auto.configuration_auto.CONFIG_MAPPING_NAMES:
        raise ValueError(f"Expected a model type of transformers, a hub id or a folder, but got {name!r}. {near}")
    if name not in causal:
        raise ValueError(f"Expected a model type for causal language models, but got {name!r}. {near}")
    if pretrained:
        raise ValueError(f"Expected a hub id or a folder with pretrained=true, but got the model type {name!r}.")


def _choose_scan(loaded: Any) -> None:
    """Choose mambapy's scan for a Mamba where it is installed and mamba-ssm's kernels are not."""
    if hasattr(loaded, "use_mambapy"):
        kernels = importlib.util.find_spec("mamba_ssm")
        loaded.use_mambapy = kernels is None and importlib.util.find_spec("mambapy") is not None


def _without_network(name: str, error: BaseException) -> str:
    return (
        f"Expected to load '{name}' from the hub or a folder, but: {error} Without a network give a model type "
        "(name='qwen2' or 'mamba') with its `config`, and the embedded data source='python'."
    )


def add_lora(net: Any, options: dict[str, Any]) -> nn.Module:
    """Freeze a model and add low-rank adapters.

    Args:
        net: A model of transformers.
        options: Arguments of `peft.LoraConfig`.

    Returns:
        The wrapped model.

    Raises:
        ValueError: If peft does not take an option.
    """
    peft = require("peft")
    try:
        config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    except TypeError as error:
        raise ValueError(f"Expected arguments of `peft.LoraConfig`, but got {options}: {error}") from error
    return peft.get_peft_model(net, config)
