"""The sources of parameters: a module, a partition, names, tensors or groups, read as groups without options.

A group that leaves here has `params`, `param_names`, `views`, `role` and `name`, and what was given with it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import GeneratorType
from typing import Any

from torch import Tensor, nn

from lightning_gluon.options import Group
from lightning_gluon.partition.build import partition
from lightning_gluon.partition.names import route_by_name
from lightning_gluon.partition.result import Partition
from lightning_gluon.partition.route import Route, default_norm
from lightning_gluon.roles import ROLES
from lightning_gluon.step.checks import check_whole_module
from lightning_gluon.valid import plain

LISTED = ("param_names", "views", "radius")  # one entry per parameter; the radius, if it is a list
PARAMETERS = (nn.Module.parameters.__code__, nn.Module.named_parameters.__code__)

UNSEEN = (
    "{count} of the given parameters came without their module and are routed by {evidence}: matrices are 'hidden' "
    "unless a name says otherwise, also those of output layers and lookup tables. Pass the module itself, or groups "
    "with a `role`."
)


def read_source(source: Any) -> tuple[list[Group], Partition | None]:
    """Return the groups of a source, and the partition that late parameters are looked up in.

    Args:
        source: An `nn.Module`, a `Partition`, `named_parameters()`, parameters, or groups (dicts with `params`). The
            module is found behind its own `parameters()` and `named_parameters()` while they have not begun.

    Returns:
        Groups that hold at least `params`, `param_names`, `views`, `role` and `name`; the partition, if there is one.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there is no parameter.
    """
    if isinstance(source, nn.Module):
        check_whole_module(source)
        source = partition(source)
    if isinstance(source, Partition):
        groups = groups_of_routes(source)
        if not groups:
            raise ValueError("The module has no trainable parameter: every one has `requires_grad=False`.")
        return groups, source
    if isinstance(source, (Tensor, Mapping)) or not isinstance(source, Iterable):
        raise TypeError(
            f"Expected a module, a partition, named parameters or a list of groups, got {type(source).__name__}."
        )
    module = module_behind(source)
    items = as_list(source)
    if not items:
        raise ValueError("The optimizer got an empty list of parameters.")
    if all(isinstance(item, Mapping) for item in items):
        return [group for item in items for group in read_group(dict(item))], None
    found = None
    if module is not None:
        check_whole_module(module)
        with suppress(ValueError):  # no rule fits some parameter: then names and shapes are left
            found = partition(module)
    return _read_parameters(items, found), found


def module_behind(source: object) -> nn.Module | None:
    """Return the module whose parameters a generator is about to give.

    Args:
        source: `module.parameters()`, `module.named_parameters()`, or a filter or generator expression over one.

    Returns:
        The module; `None` for anything else, and for a generator that has begun.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> module_behind(p for p in layer.parameters() if p.requires_grad) is layer, module_behind([layer.weight])
        (True, None)
    """
    if isinstance(source, filter):
        arguments: Any = source.__reduce__()[1]  # the predicate, and what is filtered
        return module_behind(arguments[1])
    if not isinstance(source, GeneratorType) or inspect.getgeneratorstate(source) != inspect.GEN_CREATED:
        return None
    given = inspect.getgeneratorlocals(source)
    if source.gi_code in PARAMETERS:
        return given["self"]
    return module_behind(given[".0"]) if ".0" in given else None


def as_list(params: Any) -> list[Any]:
    """Return the parameters of a group, of which there may be one, in an order that a saved state can rely on."""
    if isinstance(params, (set, frozenset)):
        raise TypeError("Expected parameters in an order that is the same in every run, such as a list, but got a set.")
    return [params] if isinstance(params, Tensor) else list(params)


def groups_of_routes(pairs: Iterable[tuple[Route, Tensor]]) -> list[Group]:
    """Return one group per role, and one for every norm that a rule of the partition asks for."""
    groups: dict[tuple[int, str], Group] = {}
    order = {role: place for place, role in enumerate(ROLES)}
    for route, parameter in pairs:
        asked = "" if route.norm == default_norm(route.role, route.views) else route.norm
        group = groups.setdefault((order[route.role], asked), _empty_group(route.role))
        if asked:
            group.update(norm="spectral_conv" if asked == "conv" else asked, name=f"{route.role}-{asked}")
        _append(group, parameter, route.name, [view.astuple() for view in route.views])
    return [groups[key] for key in sorted(groups)]


def _empty_group(role: str) -> Group:
    return {"params": [], "param_names": [], "views": [], "role": role, "name": role}


def _append(group: Group, parameter: Tensor, name: str, views: list | None) -> None:
    group["params"].append(parameter)
    group["param_names"].append(name)
    group["views"].append(views or None)


def routes_of(params: Sequence[Any], known: Partition | None) -> list[tuple[Route, Tensor]]:
    """Return parameters with their routes; nothing if the partition does not know them all.

    Args:
        params: Parameters, or pairs of a name and a parameter; a name that is given stays.
        known: The partition.
    """
    pairs: list[tuple[Route, Tensor]] = []
    for item in params:
        name, tensor = item if isinstance(item, tuple) else (None, item)
        route = known.find(tensor) if known is not None else None
        if route is None:
            return []
        pairs.append((replace(route, name=name or route.name), tensor))
    return pairs


def infer_routes(params: Sequence[Tensor], names: Sequence[str] | None, base: str) -> list[tuple[Route, Tensor]]:
    """Return routes of parameters that came without their module, by their names if they have some, else by shape.

    Args:
        params: The parameters.
        names: Their names, if they were given.
        base: Begins the names of parameters that have none.

    Returns:
        One pair per parameter. A warning says how many matrices there are.
    """
    count = sum(parameter.ndim >= 2 for parameter in params)
    if count:
        evidence = "shape" if names is None else "name and shape"
        warnings.warn(UNSEEN.format(count=count, evidence=evidence), stacklevel=_outside())
    if names is not None:
        taken: set[str] = set()
        named = [(free_name(name, taken), parameter.shape) for name, parameter in zip(names, params, strict=True)]
        return list(zip(route_by_name(named), params, strict=True))
    return [(_route_by_shape(f"{base}_{index}", parameter), parameter) for index, parameter in enumerate(params)]


def free_name(name: str, taken: set[str]) -> str:
    """Return a name, numbered from 2 on if it is taken; it is taken then."""
    free, count = name, 2
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    taken.add(free)
    return free


def _route_by_shape(name: str, parameter: Tensor) -> Route:
    """Without module and name only the shape is left: matrices are hidden, vectors are biases."""
    role = "hidden" if parameter.ndim >= 2 else "bias"
    return Route(name, (), tuple(parameter.shape), role, default_norm(role, ()), "by its shape alone")


def _outside() -> int:
    """Return the `stacklevel` at which a warning of the caller shows the first line outside this package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("lightning_gluon", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _read_parameters(items: Sequence[Any], known: Partition | None) -> list[Group]:
    """Return groups of parameters, by the partition if it knows them, else by what they show."""
    params, names = _names_apart(items)
    for index, parameter in enumerate(params):
        if not isinstance(parameter, Tensor):
            name = names[index] if names is not None else f"param_{index}"
            raise TypeError(f"Expected parameters to be tensors, but {name!r} is {type(parameter).__name__}.")
    return groups_of_routes(routes_of(items, known) or infer_routes(params, names, "param"))


def _names_apart(items: Sequence[Any]) -> tuple[list[Any], list[str] | None]:
    """Return parameters and their names; `None` if not all have one."""
    params = [item[1] if isinstance(item, tuple) else item for item in items]
    named = bool(items) and all(isinstance(item, tuple) for item in items)
    return params, [item[0] for item in items] if named else None


def read_group(group: Group, known: Partition | None = None) -> list[Group]:
    """Return a given group, named; without a role it becomes one per role.

    Args:
        group: A dict with `params`, and anything else that a group may have.
        known: The partition in which parameters are looked up.

    Returns:
        One group or more.

    Raises:
        ValueError: If there are no `params`, or roles are given in another way.
    """
    if "params" not in group:
        raise ValueError(f"Expected every group to have `params`, but one has only: {', '.join(map(str, group))}.")
    if "use_muon" in group:
        raise ValueError(
            "`use_muon` is not an option here. Pass the model itself, or give each group a `role`: role='hidden' for "
            "True, and for False 'embedding', 'head' or 'bias', with radius=1.0 if `lr` is to be AdamW's own."
        )
    items = as_list(group["params"])
    group["params"], names = _names_apart(items)
    names = group.get("param_names", names)
    base = str(group.get("name", group.get("role", "param")))
    if "role" not in group:
        pairs = routes_of(items, known) or infer_routes(group["params"], names, base)
        return split_group(group, pairs)
    count = len(items)
    group.setdefault("param_names", names or [f"{base}_{index}" for index in range(count)])
    group.setdefault("views", [None] * count)
    group.setdefault("name", group["role"])
    return [group]


def split_group(group: Group, pairs: Sequence[tuple[Route, Tensor]]) -> list[Group]:
    """Return a given group as one per role; what it lists per parameter goes with the parameter.

    Args:
        group: The group.
        pairs: Its parameters with their routes.

    Returns:
        Groups with the options of the given one.
    """
    place = {parameter: index for index, (_, parameter) in enumerate(pairs)}
    listed = {key: plain(group[key]) for key in LISTED if key in group}
    parts = groups_of_routes(pairs) or [_empty_group("hidden")]
    for part in parts:
        own_name = part["name"]
        indices = [place[parameter] for parameter in part["params"]]
        for key, value in group.items():
            part.setdefault(key, value)
        for key, values in listed.items():
            if isinstance(values, (list, tuple)) and len(values) == len(pairs):
                part[key] = [values[index] for index in indices]
        part["name"] = f"{group['name']}-{own_name}" if "name" in group else own_name
    return parts
