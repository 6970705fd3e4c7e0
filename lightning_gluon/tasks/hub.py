"""Causal language models by configuration or hub id, with what makes them fast where it is installed."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_gluon.configurations import configuration
from lightning_gluon.extras import require

__all__ = ["ModelSource", "add_lora", "build_causal_lm", "check_packing", "freeze_others"]

# Layers that look at positions, and so at documents. A recurrent state goes on from one document to the next.
STATELESS = ("full_attention", "sliding_attention", "chunked_attention")


# Packages whose kernels transformers takes for Mamba on a GPU.
MAMBA_KERNELS = ("mamba_ssm", "causal_conv1d")
# Formats of a frozen base, as settings of bitsandbytes. The first is QLoRA's, arXiv 2305.14314.
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@dataclass(frozen=True)
class ModelSource:
    """A causal language model: where it comes from, and as what it is built.

    Args:
        name: A model type of transformers, a hub id or a local folder.
        config: Entries of the configuration.
        pretrained: Whether to load weights.
        dtype: Name of the weights' dtype.
        attn_implementation: Attention of transformers; None is its default.
        quantization: Name of the format of the loaded weights, a key of `QUANTIZATIONS`; None keeps them.
    """

    name: str
    config: dict[str, Any]
    pretrained: bool = False
    dtype: str = "float32"
    attn_implementation: str | None = None
    quantization: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of transformers beside the configuration."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        if self.quantization is not None:
            options["quantization_config"] = quantized(self.quantization, self.dtype)
        return options


def quantized(name: str, dtype: str) -> Any:
    """Return the settings of transformers for weights that bitsandbytes quantises.

    Args:
        name: A key of `QUANTIZATIONS`.
        dtype: Name of the dtype that products are taken in.

    Returns:
        The settings.

    Raises:
        ModuleNotFoundError: If bitsandbytes is not installed.
    """
    require("bitsandbytes")
    settings = dict(QUANTIZATIONS[name])
    if "load_in_4bit" in settings:
        settings["bnb_4bit_compute_dtype"] = dtype
    return require("transformers").BitsAndBytesConfig(**settings)


def build_causal_lm(source: ModelSource) -> Any:
    """Build a causal language model.

    Mamba runs on mambapy's parallel scan where mambapy is installed and mamba-ssm's kernels are not.

    Args:
        source: Where the model comes from.

    Returns:
        The model.

    Raises:
        ValueError: If the model type is unknown, an entry does not exist, or a model type is to be loaded with weights.
        ConnectionError: If a hub id is not in the local cache and the hub cannot be reached.
    """
    auto, name = require("transformers").AutoModelForCausalLM, source.name
    if "/" not in name and not Path(name).is_dir():
        _check_type(name, pretrained=source.pretrained)
    try:
        loaded = configuration(name, source.config)
    except ConnectionError as error:
        raise ConnectionError(_without_network(name, error.__cause__ or error)) from error
    if "use_mambapy" not in source.config:
        _choose_scan(loaded)
    if not source.pretrained:
        return auto.from_config(loaded, trust_remote_code=False, **source.options)
    try:
        net = auto.from_pretrained(name, config=loaded, trust_remote_code=False, **source.options)
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
    """Choose mambapy's scan for a Mamba where it is installed and mamba-ssm's kernels are not, and say what runs."""
    if not hasattr(loaded, "use_mambapy"):
        return
    fused = all(map(importlib.util.find_spec, MAMBA_KERNELS))
    loaded.use_mambapy = importlib.util.find_spec("mambapy") is not None and not fused
    if fused:
        rank_zero_info("Mamba runs on the kernels of mamba-ssm and causal-conv1d on a GPU.")
    elif loaded.use_mambapy:
        rank_zero_info("Mamba runs on the parallel scan of mambapy.")
    else:
        rank_zero_warn(
            "Mamba runs token by token, which is slow. Install mambapy, or on a GPU mamba-ssm and causal-conv1d."
        )


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
    if getattr(net, "is_quantized", False):
        net = peft.prepare_model_for_kbit_training(net, use_gradient_checkpointing=False)
    try:
        config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    except TypeError as error:
        raise ValueError(f"Expected arguments of `peft.LoraConfig`, but got {options}: {error}") from error
    return peft.get_peft_model(net, config)


def freeze_others(net: nn.Module, targets: Sequence[str]) -> None:
    """Freeze all parameters but those of some modules.

    Args:
        net: A model.
        targets: Names of modules, or ends of their dotted names, such as `out_proj`.

    Raises:
        ValueError: If there is no module of a name.

    Example:
        >>> net = nn.ModuleDict({"up": nn.Linear(2, 2), "down": nn.Linear(2, 2)})
        >>> freeze_others(net, ["down"])
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['down.weight', 'down.bias']
    """
    net.requires_grad_(False)
    for target in targets:
        found = [module for name, module in net.named_modules() if name == target or name.endswith(f".{target}")]
        if not found:
            names = {name.rpartition(".")[2] for name, _ in net.named_modules()}
            ends = sorted(name for name in names if name and not name.isdigit())
            raise ValueError(f"Expected names of modules as `targets`, but got {target!r}. There are {ends}.")
        for module in found:
            module.requires_grad_(True)


def check_packing(net: Any) -> None:
    """Check that a model can keep documents apart that share a row.

    Args:
        net: A model of transformers.

    Raises:
        ValueError: If it knows no positions, or carries a state from token to token.
    """
    whole = net.get_base_model() if hasattr(net, "get_base_model") else net
    kinds = set(getattr(whole.config, "layer_types", None) or ())
    if "position_ids" in inspect.signature(whole.forward).parameters and kinds.issubset(STATELESS):
        return
    raise ValueError(
        f"Expected a model whose attention stays inside a document with packing, but {type(whole).__name__} carries a "
        "state over its end. Set data.init_args.packing to false."
    )
