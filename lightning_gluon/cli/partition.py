"""The command `lightning-gluon partition`: the role, norm and matrices of every parameter of a model."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_gluon.cli.arguments import Arguments, print_json
from lightning_gluon.cli.errors import one_line_errors, search_working_directory
from lightning_gluon.cli.models import build_model
from lightning_gluon.extras import require
from lightning_gluon.partition import partition as route
from lightning_gluon.partition.route import Route

__all__ = ["partition_parser", "print_partition"]


def print_partition(arguments: Sequence[str]) -> None:
    """Print the partition of a model that is built on the meta device.

    Args:
        arguments: Command-line arguments, the command first, see `--help`.

    Raises:
        SystemExit: If the arguments are wrong, or the model cannot be built or routed.
    """
    given = partition_parser().parse_args(list(arguments[1:]))
    with one_line_errors():
        _print(given)


def _print(given: Namespace) -> None:
    options, rules = _parse_entries("--kwargs", given.kwargs), _parse_entries("--rules", given.rules)
    strict, per_head = not given.no_strict, given.per_head
    search_working_directory()
    if given.config:
        model, section = _from_yaml(given.config)
        for name, role in (section.rules or {}).items():
            rules.setdefault(name, role)
        strict, per_head = strict and section.strict, per_head or section.per_head
    else:
        model = build_model(given.model, options)
    _build_late_layers(model)
    found = route(model, rules=rules or None, strict=strict, per_head=per_head)
    if given.json:
        print_json([_plain_route(one) for one in found.routes.values()])
    else:
        print(found)


def _plain_route(route: Route) -> dict[str, object]:
    """Return what the table shows of a parameter as plain values."""
    columns = ("name", "aliases", "shape", "role", "norm", "matrices", "reason", "frozen")
    return {column: getattr(route, column) for column in columns}


def partition_parser() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments(
        "lightning-gluon partition",
        description="Print the partition of a model, with the norms of method gluon.",
        epilog="Class paths are searched in the working directory after all installed packages.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model", help="timm/NAME, transformers/TYPE (or CONFIG CLASS), hub id or folder, or class path"
    )
    source.add_argument("-c", "--config", action="append", help="YAML of `fit`; several merge; its model is built")
    parser.add_argument("--kwargs", default="{}", help="JSON: arguments of the model or entries of its configuration")
    parser.add_argument("--rules", default="{}", help="JSON: roles by glob over parameter names; ahead of the YAML's")
    parser.add_argument("--no-strict", action="store_true", help="elementwise, with a warning, where no rule fits")
    parser.add_json()
    parser.add_argument("--per-head", action="store_true", help="queries, keys and values as one matrix per head")
    return parser


def _parse_entries(option: str, text: str) -> Any:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise ValueError(f"Expected `{option}` to be a JSON object such as '{{\"depth\": 4}}', but got {text!r}.")
    return entries


def _from_yaml(files: list[str]) -> tuple[nn.Module, Namespace]:
    """Return the model of a configuration and its `optimizer` section."""
    require("jsonargparse")
    from lightning_gluon.cli.fit import ModelCLI

    with torch.device("meta"):
        cli = ModelCLI(args=[part for file in files for part in ("--config", file)])
    return cli.model, cli.config.optimizer


def _build_late_layers(model: nn.Module) -> None:
    """Build the layers that a LightningModule leaves to its Trainer."""
    configure = getattr(model, "configure_model", None)
    if configure is not None:
        with torch.device("meta"):
            configure()
