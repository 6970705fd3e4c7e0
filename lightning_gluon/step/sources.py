"""The sources of parameters: a module, a partition, names, tensors or groups, read as groups without options.

A group that leaves here has `params`, `param_names`, `views`, `role` and `name`, and what was given with it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import GeneratorType
from typing import Any

from torch import Tensor, nn

from lightning_gluon.norms.needs import Partner
from lightning_gluon.options import Group
from lightning_gluon.partition.build import partition
from lightning_gluon.partition.names import route_by_name
from lightning_gluon.partition.result import Partition
from lightning_gluon.partition.route import Route, default_norm
from lightning_gluon.roles import ROLES
from lightning_gluon.step.checks import check_whole_module
from lightning_gluon.valid import plain

LISTED = ("param_names", "views", "partners", "radius")  # one entry per parameter; the radius, if it is a list
PARTITION_NORMS = {"conv": "spectral_conv"}  # what partitions call differently
OWN_FRAMES = ("lightning_gluon", "torch")
PARAMETERS = (nn.Module.parameters.__code__, nn.Module.named_parameters.__code__)

UNSEEN = (
    "{count} of the given parameters came without their module and are routed by {evidence}: matrices are 'hidden' "
    "unless a name says otherwise, also those of output layers and lookup tables. Pass the module itself, or groups "
    "with a `role`."
)


@dataclass(frozen=True, eq=False)
class GivenParameter:
    """A parameter as it was given, with its name if that came with it."""

    parameter: Tensor
    name: str | None = None

    @classmethod
    def read(cls, item: Any) -> GivenParameter:
        """Read a parameter, or a pair of a name and a parameter."""
        if isinstance(item, tuple):
            name, parameter = item
            return cls(parameter, name)
        return cls(item)


def read_source(source: object) -> tuple[list[Group], Partition | None]:
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
        groups = groups_of_routes(source, source)
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


def as_list(params: Iterable[object]) -> list:
    """Return the parameters of a group, of which there may be one, in an order that a saved state can rely on."""
    if isinstance(params, (set, frozenset)):
        raise TypeError("Expected parameters in an order that is the same in every run, such as a list, but got a set.")
    return [params] if isinstance(params, Tensor) else list(params)


def groups_of_routes(pairs: Iterable[tuple[Route, Tensor]], known: Partition | None = None) -> list[Group]:
    """Return one group per role, and one for every norm that a rule of the partition asks for.

    Args:
        pairs: Parameters with their routes.
        known: The partition that has the other factors of products, frozen ones included.
    """
    groups: dict[tuple[int, str], Group] = {}
    order = list(ROLES)
    for route, parameter in pairs:
        asked = route.norm
        if asked == default_norm(route.role, route.views):
            asked = ""
        key = (order.index(route.role), asked)
        if key not in groups:
            groups[key] = _empty_group(route.role, asked)
        views = [view.astuple() for view in route.views]
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(route.name)
        groups[key]["views"].append(views or None)
        groups[key]["partners"].append(_partner_of(route, known))
    for group in groups.values():
        if not any(group["partners"]):
            del group["partners"]
    return [groups[key] for key in sorted(groups)]


def _partner_of(route: Route, known: Partition | None) -> Partner | None:
    """Return the other factor of a product that a parameter belongs to."""
    if route.pair is None or known is None:
        return None
    return Partner(known.parameter(route.pair.name), route.pair.gain, route.pair.rows)


def _empty_group(role: str, norm: str = "") -> Group:
    """Return a group without members; `norm` is one that a rule asks for."""
    group: Group = {"params": [], "param_names": [], "views": [], "partners": []}
    group["role"] = group["name"] = role
    if norm:
        group["norm"] = PARTITION_NORMS.get(norm, norm)
        group["name"] = f"{role}-{norm}"
    return group


def routes_of(given: Sequence[GivenParameter], known: Partition | None) -> list[tuple[Route, Tensor]]:
    """Return parameters with their routes; nothing if the partition does not know them all.

    Args:
        given: The parameters; a name that was given stays.
        known: The partition.
    """
    pairs: list[tuple[Route, Tensor]] = []
    for one in given:
        route = None
        if known is not None and isinstance(one.parameter, nn.Parameter):
            route = known.find(one.parameter)
        if route is None:
            return []
        if one.name is not None:
            route = replace(route, name=one.name)
        pairs.append((route, one.parameter))
    return pairs


def infer_routes(given: Sequence[GivenParameter], base: str) -> list[tuple[Route, Tensor]]:
    """Return routes of parameters that came without their module, by their names if they have some, else by shape.

    Args:
        given: The parameters.
        base: Begins the names of parameters that have none.

    Returns:
        One pair per parameter. A warning says how many matrices there are.
    """
    params = [one.parameter for one in given]
    named = all(one.name is not None for one in given)
    _warn_of_matrices(params, "name and shape" if named else "shape")
    taken: set[str] = set()
    shapes = []
    for index, one in enumerate(given):
        name = free_name(one.name or f"{base}_{index}", taken)
        shapes.append((name, tuple(one.parameter.shape)))
    routes = route_by_name(shapes) if named else [_route_by_shape(*pair) for pair in shapes]
    return list(zip(routes, params, strict=True))


def _warn_of_matrices(params: Iterable[Tensor], evidence: str) -> None:
    count = sum(parameter.ndim >= 2 for parameter in params)
    if count:
        warnings.warn(UNSEEN.format(count=count, evidence=evidence), stacklevel=_caller_level())


def free_name(name: str, taken: set[str]) -> str:
    """Return a name, numbered from 2 on if it is taken; it is taken then."""
    free, count = name, 2
    while free in taken:
        free = f"{name}_{count}"
        count += 1
    taken.add(free)
    return free


def _route_by_shape(name: str, shape: tuple[int, ...]) -> Route:
    """Without module and name only the shape is left: matrices are hidden, vectors are biases."""
    role = "hidden" if len(shape) >= 2 else "bias"
    norm = default_norm(role, ())
    return Route(name, (), shape, role, norm, "by its shape alone")


def _caller_level() -> int:
    """Return the `stacklevel` at which a warning of the caller shows the first line outside this package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in OWN_FRAMES:
            break
        frame = frame.f_back
        level += 1
    return level


def _read_parameters(items: Sequence[object], known: Partition | None) -> list[Group]:
    """Return groups of parameters, by the partition if it knows them, else by what they show."""
    for index, item in enumerate(items):
        name, parameter = item if isinstance(item, tuple) else (f"param_{index}", item)
        if not isinstance(parameter, Tensor):
            kind = type(parameter).__name__
            raise TypeError(f"Expected parameters to be tensors, but {name!r} is {kind}.")
    given = [GivenParameter.read(item) for item in items]
    pairs = routes_of(given, known) or infer_routes(given, "param")
    return groups_of_routes(pairs, known)


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
    given = [GivenParameter.read(item) for item in as_list(group["params"])]
    group["params"] = [one.parameter for one in given]
    if "param_names" in group:
        named = zip(group["params"], group["param_names"], strict=False)  # their number is checked with the others
        given = [GivenParameter(parameter, name) for parameter, name in named]
    base = str(group.get("name", group.get("role", "param")))
    if "role" not in group:
        pairs = routes_of(given, known) or infer_routes(given, base)
        return split_group(group, pairs, known)
    names = [one.name or f"{base}_{index}" for index, one in enumerate(given)]
    group.setdefault("param_names", names)
    group.setdefault("views", [None] * len(given))
    group.setdefault("name", group["role"])
    return [group]


def split_group(group: Group, pairs: Sequence[tuple[Route, Tensor]], known: Partition | None = None) -> list[Group]:
    """Return a given group as one per role; what it lists per parameter goes with the parameter.

    Args:
        group: The group.
        pairs: Its parameters with their routes.
        known: The partition they are from.

    Returns:
        Groups with the options of the given one.
    """
    place = {parameter: index for index, (_, parameter) in enumerate(pairs)}
    parts = groups_of_routes(pairs, known) or [_empty_group("hidden")]
    for part in parts:
        indices = [place[parameter] for parameter in part["params"]]
        part.update(_listed_part(group, indices, len(pairs)))
        if "name" in group:
            part["name"] = f"{group['name']}-{part['name']}"
        for key, value in group.items():
            part.setdefault(key, value)
    return parts


def _listed_part(group: Group, indices: Sequence[int], count: int) -> Group:
    """Return the lists of a group, one entry per parameter, for some of its parameters."""
    share: Group = {}
    for key in LISTED:
        values = plain(group.get(key))
        if isinstance(values, (list, tuple)) and len(values) == count:
            share[key] = [values[index] for index in indices]
    return share
