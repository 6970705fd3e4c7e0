"""Causal language models by configuration or hub id, with what makes them fast where it is installed."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from recipes.extras import require

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
    """
    transformers = require("transformers", "text")
    auto = transformers.models.auto
    known = auto.configuration_auto.CONFIG_MAPPING_NAMES
    causal = auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    alike = difflib.get_close_matches(name, causal, n=5, cutoff=0.3)
    near = f"Similar model types: {alike}."
    if name in known:
        if name not in causal:
            raise ValueError(f"Expected a model type for causal language models, but got {name!r}. {near}")
        if pretrained:
            raise ValueError(f"Expected a hub id or a folder with pretrained=true, but got the model type {name!r}.")
        default = transformers.AutoConfig.for_model(name)
        _check(default, config)
        entries = _scan(default, config)
        loaded = transformers.AutoConfig.for_model(name, **entries)
    elif "/" not in name and not Path(name).is_dir():
        raise ValueError(f"Expected a model type of transformers, a hub id or a folder, but got {name!r}. {near}")
    else:
        loaded = _from_hub(transformers.AutoConfig, name)
        _check(loaded, config)
        entries = _scan(loaded, config)
        for key, value in entries.items():
            setattr(loaded, key, value)
    if pretrained:
        # They come in evaluation mode, which Lightning leaves as it is: no dropout, no recomputation of activations.
        net = _from_hub(transformers.AutoModelForCausalLM, name, config=loaded, dtype="float32")
        return net.train()
    return transformers.AutoModelForCausalLM.from_config(
        loaded,
        dtype="float32",
        trust_remote_code=False,
    )


def _check(loaded: Any, config: dict[str, Any]) -> None:
    unknown = [key for key in config if not hasattr(loaded, key)]
    if unknown:
        kind = type(loaded).__name__
        entries = sorted(loaded.to_dict())
        valid = ", ".join(key for key in entries if not key.startswith("_"))
        raise ValueError(f"Expected entries of {kind}, but got {unknown}. Valid are: {valid}.")


def _scan(loaded: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Choose mambapy's scan for a Mamba where it is installed and mamba-ssm's kernels are not."""
    if not hasattr(loaded, "use_mambapy"):
        return config
    if "use_mambapy" in config:
        return config
    kernels = importlib.util.find_spec("mamba_ssm")
    scan = importlib.util.find_spec("mambapy")
    use_scan = kernels is None and scan is not None
    return {**config, "use_mambapy": use_scan}


def _from_hub(auto: Any, name: str, **kwargs: Any) -> Any:
    try:
        return auto.from_pretrained(name, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"Expected to load '{name}' from the hub or a folder, but: {error} Without a network give a model type "
            "(name='qwen2' or 'mamba') with its `config`, and the embedded data source='python'."
        ) from error


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
    peft = require("peft", "lora")
    try:
        config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    except TypeError as error:
        raise ValueError(f"Expected arguments of `peft.LoraConfig`, but got {options}: {error}") from error
    return peft.get_peft_model(net, config)
