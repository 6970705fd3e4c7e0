"""Models without weights from a name: of timm, of transformers, of a folder or the hub, or a class path."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_gluon.configurations import ConfigValues, configuration, suggest
from lightning_gluon.extras import require

if typing.TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["build_model"]


def build_model(name: str, arguments: ConfigValues) -> nn.Module:
    """Build a model without weights, on the meta device.

    A class path is imported, which runs the code of its module. Nothing is called before it is known to be a model.

    Args:
        name: `timm/NAME`, `transformers/TYPE` (`qwen2`, `Qwen2Config`), a hub id or a folder with a `config.json`. Or
            the dotted path of a subclass of `nn.Module`, or of a function that is annotated to return one.
        arguments: Arguments of the model, or entries of its configuration.

    Returns:
        The model; its parameters have shapes and no values.

    Raises:
        ValueError: If the name is none of these.
        ModuleNotFoundError: If timm, transformers or the module of a class path is not installed.
        ConnectionError: If a hub id is not in the local cache and the hub cannot be reached.

    Example:
        >>> build_model("torch.nn.Linear", {"in_features": 4, "out_features": 2}).weight.device.type
        'meta'
    """
    library, _, rest = name.partition("/")
    with torch.device("meta"):
        if library == "timm" and rest:
            return _of_timm(rest, arguments)
        if library == "transformers" and rest:
            return _of_configuration(configuration(rest, arguments))
        if "/" in name or Path(name).is_dir():
            return _of_configuration(configuration(name, arguments))
        return _find_factory(name)(**arguments)


def _of_timm(name: str, arguments: ConfigValues) -> nn.Module:
    timm = require("timm")
    source, _ = timm.models.parse_model_name(name)
    if not source and not timm.is_model(name):
        raise ValueError(f"Expected a model of timm, but got {name!r}.{suggest(name, timm.list_models())}")
    return timm.create_model(name, pretrained=False, **arguments)


def _of_configuration(config: PreTrainedConfig) -> nn.Module:
    """Build the architecture that a configuration names, a causal language model, or the bare model."""
    transformers = require("transformers")
    for name in config.architectures or ():
        cls = getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return cls(config)
    causal = config.model_type in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    return auto.from_config(config, trust_remote_code=False)


def _find_factory(path: str) -> Callable[..., nn.Module]:
    """Return the class or factory of a dotted path, once it is known to be one of models."""
    place, _, name = path.rpartition(".")
    if not place:
        raise ValueError(
            "Expected a model to be timm/NAME, transformers/TYPE, a hub id, ./FOLDER or a class path such as "
            f"package.module.Class, but got {path!r}."
        )
    module = _import(place, path)
    if not hasattr(module, name):
        raise ValueError(f"Expected a class in the module {place}, but it has no {name!r}.{suggest(name, dir(module))}")
    found = getattr(module, name)
    if not (_is_module(found) or _is_module(_returned(found))):
        raise ValueError(
            f"Expected {path} to be a subclass of nn.Module, or a function annotated to return one, but it is "
            f"{_kind(found)}. It was not called."
        )
    return found


def _import(place: str, path: str) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or place
        if place == missing or place.startswith(f"{missing}."):
            raise ModuleNotFoundError(
                f"Expected {path} to be a class path, but there is no module {missing!r}. Install its package, or run "
                "in the folder that holds it.",
                name=missing,
            ) from error
        raise


def _is_module(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _returned(found: object) -> object:
    """Return the annotation of a function's result; None if there is none."""
    if not inspect.isfunction(found):
        return None
    try:
        return typing.get_type_hints(found).get("return")
    except Exception:  # an annotation that cannot be evaluated
        return None


def _kind(found: object) -> str:
    if isinstance(found, type):
        return "another class"
    if callable(found):
        return "a function without that annotation"
    return f"of type {type(found).__name__}"
