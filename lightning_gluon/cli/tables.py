"""What `lightning-gluon partition` and `lightning-gluon methods` print."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from torch import nn

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import METHODS, Method
from lightning_gluon.partition import partition as route
from lightning_gluon.roles import ROLES

__all__ = ["build_model", "methods", "partition"]

WIDE = 160  # columns that the table of methods takes
NARROW = 80  # columns that it takes without what `methods NAME` shows too


def methods(arguments: Sequence[str] = ()) -> None:
    """Print the method table, or the options of one method.

    Args:
        arguments: Command-line arguments: the name of a method, or nothing.

    Raises:
        SystemExit: If there is no such method.
    """
    parser = argparse.ArgumentParser("lightning-gluon methods", description="Print the table of methods.")
    parser.add_argument("name", nargs="?", help="print the rules and options of this method")
    name = parser.parse_args(list(arguments)).name
    if name is None:
        console = _console()
        console.print(_overview(console.width))
    elif name in METHODS:
        _console().print(_detail(name))
    else:
        raise SystemExit(f"Expected a method out of {', '.join(METHODS)}; got {name!r}.")


def _console() -> Console:
    """The terminal, or 180 columns where the output goes into a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=180)


def _overview(width: int) -> Table:
    """The table of methods; a narrow one leaves out what `methods NAME` shows too, or says it below the name."""
    narrow, below = width < WIDE, width <= NARROW
    table = Table(title="method = norm x estimator x radius, per role (`lightning-gluon methods NAME` for one)")
    for column in ("method", "hidden", "others", "gradients", "momentum", "decay", "what it is", "source"):
        if not ((narrow and column in ("hidden", "others", "source")) or (below and column == "what it is")):
            wrapped = ("others", "what it is", "source", "method" if below else "")
            table.add_column(column, no_wrap=column not in wrapped)
    for name, row in METHODS.items():
        others = ", ".join(dict.fromkeys(_short(row, role) for role in ROLES if role != "hidden"))
        numbers = (str(_gradients(row)), f"{row.momentum:g}", f"{row.weight_decay:g}")
        if below:
            table.add_row(Group(name, Padding(row.summary, (0, 0, 0, 2))), *numbers)
        elif narrow:
            table.add_row(name, *numbers, row.summary)
        else:
            table.add_row(name, _short(row, "hidden"), others, *numbers, row.summary, row.source)
    return table


def _short(row: Method, role: str) -> str:
    rule = row.rules[role]
    return rule.estimator if rule.norm == "identity" else f"{rule.norm} {rule.estimator}"


def _gradients(row: Method) -> int:
    return max(ESTIMATORS[name].gradients for name in row.estimators)


def _detail(name: str) -> Table:
    row = METHODS[name]
    table = Table(title=f"{name}: {row.summary} ({row.source})", caption_justify="left", pad_edge=False)
    for column in ("role", "norm", "scaling", "estimator", "radius"):
        table.add_column(column, no_wrap=column in ("role", "norm"))
    options: dict[str, dict[str, Any]] = {}
    for role in ROLES:
        rule = row.rules[role]
        table.add_row(role, rule.norm, rule.scaling or "", rule.estimator, f"{rule.radius:g}")
        options[rule.estimator] = {**ESTIMATORS[rule.estimator].options, **rule.options}
    listed = {key: ", ".join(f"{option}={value}" for option, value in given.items()) for key, given in options.items()}
    lines = [f"options of {estimator}: {text or 'none'}" for estimator, text in listed.items()]
    table.caption = "\n".join([f"momentum={row.momentum:g}, weight_decay={row.weight_decay:g}", *lines])
    return table


def partition(arguments: Sequence[str]) -> None:
    """Print the partition of a model that is built on the meta device.

    Args:
        arguments: Command-line arguments, see `--help`.

    Raises:
        SystemExit: If the model cannot be built or routed.
    """
    parser = argparse.ArgumentParser(
        "lightning-gluon partition", description="Print the partition of a model, with the norms of method gluon."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model", help="timm/NAME, transformers/TYPE (or CONFIG CLASS), hub id or folder, or class path"
    )
    source.add_argument("-c", "--config", action="append", help="YAML of `fit`; several merge; its model is built")
    parser.add_argument("--kwargs", default="{}", help="JSON: arguments of the model or entries of its configuration")
    parser.add_argument("--rules", default="{}", help="JSON: roles by glob over parameter names; ahead of the YAML's")
    parser.add_argument("--no-strict", action="store_true", help="elementwise, with a warning, where no rule fits")
    given = parser.parse_args(list(arguments))
    try:
        kwargs, rules = _entries("--kwargs", given.kwargs), _entries("--rules", given.rules)
        strict = not given.no_strict
        if given.config:
            model, section = _from_yaml(given.config)
            rules.update({key: value for key, value in (section.rules or {}).items() if key not in rules})
            strict = strict and section.strict
        else:
            model = build_model(given.model, kwargs)
        _late_layers(model)
        table = route(model, rules=rules or None, strict=strict)
    except (ValueError, TypeError, OSError, ImportError, AttributeError, RuntimeError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    print(table)


def _entries(option: str, text: str) -> Any:
    try:
        entries = json.loads(text)
    except ValueError:
        entries = None
    if not isinstance(entries, dict):
        raise ValueError(f"Expected `{option}` to be a JSON object such as '{{\"depth\": 4}}', but got {text!r}.")
    return entries


def build_model(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build a model without weights, on the meta device.

    Args:
        name: `timm/NAME`, `transformers/TYPE` (`qwen2`, `Qwen2Config`), a hub id or folder with a `config.json`, or the
            dotted path of a class.
        kwargs: Arguments of the model, or entries of its configuration.

    Returns:
        The model; its parameters have shapes and no values.

    Raises:
        ValueError: If the name is none of these.
        ConnectionError: If a hub id is not in the local cache and the hub cannot be reached.

    Example:
        >>> build_model("torch.nn.Linear", {"in_features": 4, "out_features": 2}).weight.device.type
        'meta'
    """
    library, _, rest = name.partition("/")
    with torch.device("meta"):
        if library == "timm" and rest:
            timm = _require("timm", "vision")
            if not rest.startswith("hf-hub:") and not timm.is_model(rest):
                raise ValueError(f"Expected a model of timm, but got {rest!r}.{_near(rest, timm.list_models())}")
            return timm.create_model(rest, pretrained=False, **kwargs)
        if library == "transformers" and rest:
            return _from_config(_configuration(rest, kwargs))
        if "/" in name:
            return _from_config(_of_hub(name, kwargs))
        module, _, attribute = name.rpartition(".")
        if not module:
            raise ValueError(
                f"Expected `--model` to be timm/NAME, transformers/TYPE, hub id, ./FOLDER or class path, got {name!r}."
            )
        return getattr(importlib.import_module(module), attribute)(**kwargs)


def _configuration(name: str, entries: dict[str, Any]) -> Any:
    transformers = _require("transformers", "text")
    cls: Any = getattr(transformers, name, None)
    if not hasattr(cls, "model_type"):
        known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        if name not in known:
            raise ValueError(f"Expected a model type of transformers, but got {name!r}.{_near(name, known)}")
        cls = type(transformers.AutoConfig.for_model(name))
    default = cls()
    for entry in entries:
        if not hasattr(default, entry):  # transformers would keep it and build another model than was meant
            near = _near(entry, default.to_dict())
            raise ValueError(f"Expected entries of {cls.__name__} in `--kwargs`, but got {entry!r}.{near}")
    return cls(**entries)


def _of_hub(name: str, entries: dict[str, Any]) -> Any:
    try:
        return _require("transformers", "text").AutoConfig.from_pretrained(name, **entries)
    except OSError as error:
        raise ConnectionError(
            f"Expected `--model {name}` to be a folder with a `config.json` or an id that the hub or its cache has, "
            f"but: {str(error).splitlines()[0]} Without a network give a model type and its entries, such as "
            "`--model transformers/qwen2 --kwargs '{\"hidden_size\": 896}'`, or a YAML file, such as "
            "`-c recipes/qwen2_5/base.yaml`."
        ) from error


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, known, n=5)
    return f" Similar names: {', '.join(found)}." if found else ""


def _from_config(config: Any) -> nn.Module:
    """Build the architecture that a configuration names, a causal language model, or the bare model."""
    transformers = _require("transformers", "text")
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)(config)
    try:
        return transformers.AutoModelForCausalLM.from_config(config)
    except ValueError:  # not a language model
        return transformers.AutoModel.from_config(config)


def _from_yaml(files: list[str]) -> tuple[nn.Module, Any]:
    """Return the model of a configuration and its `optimizer` section."""
    _require("jsonargparse", "cli")
    from lightning_gluon.cli.fit import ModelCLI

    with torch.device("meta"):
        cli = ModelCLI(args=[part for file in files for part in ("--config", file)])
    return cli.model, cli.config.optimizer


def _late_layers(model: Any) -> None:
    """Build the layers that a LightningModule leaves to its Trainer."""
    if hasattr(model, "configure_model"):
        with torch.device("meta"):
            model.configure_model()


def _require(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        command = f'pip install "lightning-gluon[{extra}]"'
        raise ModuleNotFoundError(f"Expected `{error.name}` to be installed. Run: {command}") from error
