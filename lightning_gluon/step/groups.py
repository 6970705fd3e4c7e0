"""From a module, a partition, names or groups to complete, checked parameter groups of plain values."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import METHODS, Method
from lightning_gluon.norms.coefficients import ORTHOGONALIZERS
from lightning_gluon.norms.spectral import SCALINGS, Spectral
from lightning_gluon.norms.table import NORMS
from lightning_gluon.partition import Partition, partition
from lightning_gluon.partition.route import Route, default_norm
from lightning_gluon.roles import ROLES
from lightning_gluon.step.plan import factored_of, views_of

__all__ = ["as_list", "build_groups", "check_options", "check_ranks_fit", "complete_group", "find_method"]

# Options of every group beside its estimator's, with their defaults.
COMMON: dict[str, Any] = {
    "momentum_dtype": None,  # a torch dtype by name; None: fp32, or fp64 for fp64 parameters
    "on_nonfinite": "raise",
    "noise_floor": None,  # gradients below this share of their layer's largest are rounding noise; None: by dtype
}
MATRIX_OPTIONS = tuple(Spectral.options)  # any method may be given a spectral norm
NUMBERS = ("lr", "momentum", "weight_decay", "radius")  # what every method has beside its options
LISTED = ("params", "param_names", "views", "radius")  # one entry per parameter; the radius, if it is a list
CHOICES = {
    "orthogonalizer": ORTHOGONALIZERS,
    "orthogonalizer_dtype": ("bfloat16", "float16", "float32", "float64", None),
    "on_nonfinite": ("raise", "skip", "ignore"),
    "start": ("gradient", "zero"),
    "reference": ("copy", "step", "step8"),
    "fold": (False, True, "bfloat16"),
    "scaling": (*SCALINGS, None),
    "norm": tuple(NORMS),
    "estimator": tuple(ESTIMATORS),
    "role": tuple(ROLES),
}
# Closed lower bound, open upper bound.
RANGES = {
    "lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "momentum": (0, 1),
    "momentum_carry": (0, 1),
    "gamma": (0, math.inf),
    "clip": (0, math.inf),
    "sign_radius": (0, math.inf),
    "eps": (0, math.inf),
    "noise_floor": (0, 1),
}

# The least value, and what the error says of it.
WHOLE_NUMBERS = {
    "rank": (1, " >= 1, or None for the full carry"),
    "orthogonalizer_steps": (1, " >= 1, or None for the default"),
    "every": (1, " of steps >= 1"),
    "oversampling": (0, " >= 0"),
    "power_iterations": (0, " >= 0"),
    "seed": (-(2**63), ""),
}


def find_method(name: str) -> Method:
    """Return a row of the method table, or raise naming the rows there are."""
    if not isinstance(name, str) or name not in METHODS:
        near = _near(name, METHODS)
        raise ValueError(f"Expected `method` to be one of {', '.join(METHODS)}, but got {name!r}.{near}")
    return METHODS[name]


def _near(name: Any, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean `{found[0]}`?" if found else ""


def check_options(method: str, options: Iterable[str]) -> None:
    """Raise unless a method knows all of its options, before anything is made of them."""
    row = find_method(method)
    rows = [*(ESTIMATORS[name].options for name in row.estimators), *(NORMS[name].options for name in row.norms)]
    accepted = {*COMMON, *MATRIX_OPTIONS, "start"}.union(*rows)
    for option in options:
        if option not in accepted:
            near = _near(option, accepted.union(NUMBERS))
            raise ValueError(
                f"Unknown option `{option}` for method {method!r}. Expected one of: {', '.join(sorted(accepted))}; or "
                f"{', '.join(NUMBERS)}.{near}"
            )


def build_groups(
    source: Any,
    *,
    method: str,
    lr: float | None,
    weight_decay: float | Mapping[str, float] | None,
    radius: Mapping[str, float] | None,
    momentum: float | None,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return one complete group per role (or per given group).

    Args:
        source: An `nn.Module`, a `Partition`, `named_parameters()`, parameters, or groups (dicts with `params`).
        method: Name of a row of `METHODS`.
        lr: Hidden radius.
        weight_decay: One value, or one per role; `None`: the method's.
        radius: Radii per role that replace the method's.
        momentum: Weight on the old momentum; `None`: the method's.
        options: Further options of the method.

    Returns:
        Groups of plain values, ready for `torch.optim.Optimizer.add_param_group`.

    Raises:
        ValueError: If a name, a value or a parameter is not what the method can take.
    """
    row = find_method(method)
    check_options(method, options)
    radii = _radii(row, radius)
    _check_roles("weight_decay", weight_decay)
    partial = _from_source(source)
    lacking = set(radius or ()) - {group["role"] for group in partial}
    if lacking and partial:
        warnings.warn(
            f"`radius` is given for {', '.join(sorted(lacking))}, but no trainable parameter has that role.",
            stacklevel=4,
        )
    shared = {"lr": lr, "momentum": row.momentum if momentum is None else momentum, "start": row.start}
    for group in partial:
        role = group["role"]
        decay = weight_decay.get(role, row.weight_decay) if isinstance(weight_decay, Mapping) else weight_decay
        decay = row.weight_decay if decay is None else decay
        given = {**shared, "weight_decay": decay, "radius": radii.get(role, 1.0)}
        for key, value in {**given, **options}.items():
            group.setdefault(key, value)
    return [complete_group(group, row) for group in partial]


def _radii(row: Method, radius: Mapping[str, float] | None) -> dict[str, float]:
    radii = {role: rule.radius for role, rule in row.rules.items()}
    if radius is not None and not isinstance(radius, Mapping):
        raise ValueError(f"Expected `radius` to map roles to radii, such as {{'bias': 0.1}}, but got {radius!r}.")
    _check_roles("radius", radius)
    return {**radii, **(radius or {})}


def _check_roles(key: str, by_role: Any) -> None:
    for role in by_role if isinstance(by_role, Mapping) else ():
        if role not in ROLES:
            raise ValueError(f"Expected the keys of `{key}` to be among {', '.join(ROLES)}, but got {role!r}.")


def _from_source(source: Any) -> list[dict[str, Any]]:
    """Return groups that hold at least `params`, `param_names`, `views` and `role`."""
    if isinstance(source, nn.Module):
        source = partition(source)
    if isinstance(source, Partition):
        groups = groups_of_routes(source)
        if not groups:
            raise ValueError("The module has no trainable parameter: every one has `requires_grad=False`.")
        return groups
    if isinstance(source, (Tensor, Mapping)) or not isinstance(source, Iterable):
        raise TypeError(
            f"Expected a module, a partition, named parameters or a list of groups, got {type(source).__name__}."
        )
    items = as_list(source)
    if not items:
        raise ValueError("The optimizer got an empty list of parameters.")
    if all(isinstance(item, Mapping) for item in items):
        return [group for item in items for group in _from_group(dict(item))]
    return _by_shape(items)


def as_list(params: Any) -> list:
    """Return the parameters of a group, of which there may be one, in an order that a saved state can rely on."""
    if isinstance(params, (set, frozenset)):
        raise TypeError("Expected parameters in an order that is the same in every run, such as a list, but got a set.")
    return [params] if isinstance(params, Tensor) else list(params)


def groups_of_routes(pairs: Iterable[tuple[Route, Tensor]]) -> list[dict[str, Any]]:
    """Return one group per role, and one for every norm that a rule of the partition asks for."""
    groups: dict[tuple[int, str], dict[str, Any]] = {}
    for route, parameter in pairs:
        asked = "" if route.norm == default_norm(route.role, route.views) else route.norm
        group = groups.setdefault((list(ROLES).index(route.role), asked), _empty_group(route.role))
        if asked:
            group.update(norm="spectral_conv" if asked == "conv" else asked, name=f"{route.role}-{asked}")
        _append(group, parameter, route.name, [view.astuple() for view in route.views])
    return [groups[key] for key in sorted(groups)]


def _empty_group(role: str) -> dict[str, Any]:
    return {"params": [], "param_names": [], "views": [], "role": role, "name": role}


def _append(group: dict[str, Any], parameter: Tensor, name: str, views: list | None) -> None:
    group["params"].append(parameter)
    group["param_names"].append(name)
    group["views"].append(views or None)


def _by_shape(items: Iterable[Tensor | tuple[str, Tensor]]) -> list[dict[str, Any]]:
    """Without a module only shapes are left: matrices are hidden, vectors are biases."""
    groups: dict[str, dict[str, Any]] = {}
    for index, item in enumerate(items):
        name, parameter = item if isinstance(item, tuple) else (f"param_{index}", item)
        if not isinstance(parameter, Tensor):
            raise TypeError(f"Expected parameters to be tensors, but {name!r} is {type(parameter).__name__}.")
        role = "hidden" if parameter.ndim >= 2 else "bias"
        _append(groups.setdefault(role, _empty_group(role)), parameter, name, None)
    return list(groups.values())


def _from_group(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Complete a given group; without a role it becomes two where it holds matrices and vectors."""
    if "params" not in group:
        raise ValueError(f"Expected every group to have `params`, but one has only: {', '.join(map(str, group))}.")
    if "use_muon" in group:
        raise ValueError(
            "Expected groups to say what they are by `role`, but got `use_muon`. Pass the model itself, which is "
            "routed by what each layer is, or role='hidden' for True, and for False 'embedding', 'head' or 'bias', "
            "with radius=1.0 where `lr` is to be AdamW's own."
        )
    named = [item if isinstance(item, tuple) else (None, item) for item in as_list(group["params"])]
    group["params"] = [parameter for _, parameter in named]
    if "param_names" not in group:
        base = group.get("name", group.get("role", "param"))
        group["param_names"] = [name or f"{base}_{index}" for index, (name, _) in enumerate(named)]
    group.setdefault("views", [None] * len(group["params"]))
    parts = [group] if "role" in group else _split_by_shape(group)
    for part in parts:
        part.setdefault("name", part["role"])
    return parts


def _split_by_shape(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a group without a role as one of matrices and one of vectors, as far as it has both."""
    roles = ["hidden" if parameter.ndim >= 2 else "bias" for parameter in group["params"]]
    if len(set(roles)) < 2:
        return [{**group, "role": roles[0] if roles else "hidden"}]
    listed = [key for key in LISTED if isinstance(group.get(key), (list, tuple)) and len(group[key]) == len(roles)]
    parts = []
    for role in dict.fromkeys(roles):
        part = {**group, "role": role, "name": f"{group['name']}-{role}" if "name" in group else role}
        for key in listed:
            part[key] = [value for value, own in zip(group[key], roles, strict=True) if own == role]
        parts.append(part)
    return parts


def complete_group(group: dict[str, Any], row: Method) -> dict[str, Any]:
    """Fill in what a group does not say from its method's rule and check every value.

    Args:
        group: A group with at least `params`, `role`, `lr`, `weight_decay`, `momentum` and `radius`.
        row: The method it belongs to.

    Returns:
        The same group, complete, with plain values only.

    Raises:
        ValueError: If a value is out of range, unknown, or does not fit the parameters.
    """
    role = group["role"]
    _check_choice(group, "role")
    rule = row.rules[role]
    group.setdefault("norm", rule.norm)
    group.setdefault("estimator", rule.estimator)
    _check_choice(group, "norm")
    _check_choice(group, "estimator")
    norm, estimator = NORMS[group["norm"]], ESTIMATORS[group["estimator"]]
    defaults = {**COMMON, **norm.defaults(), **estimator.options}
    if group.get("scaling", "") is None:
        del group["scaling"]
    own = {**rule.options, **({"scaling": rule.scaling} if rule.scaling else {})}
    defaults.update({key: value for key, value in own.items() if key in defaults})
    rows = [*(ESTIMATORS[name].options for name in ESTIMATORS), *(NORMS[name].options for name in NORMS)]
    foreign = set().union(*rows) - set(defaults)
    for key in list(group):
        if key in foreign:  # an option of another role's estimator
            del group[key]
    for key, value in defaults.items():
        group.setdefault(key, value)
    group.setdefault("start", row.start)
    group.setdefault("steps", 0)
    group.setdefault("gradient_evaluations", 0)
    for key in set(group) - {"params", "param_names", "views"}:
        group[key] = _plain(group[key])
    for key in ("orthogonalizer_dtype", "momentum_dtype"):
        if key in group:
            group[key] = _dtype_name(key, group[key])
    _check_group(group)
    return group


def _plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's own: a checkpoint with others is not loaded with `weights_only`."""
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value.item() if type(value).__module__ == "numpy" and not getattr(value, "shape", None) else value


def _dtype_name(key: str, value: Any) -> str | None:
    if isinstance(value, torch.dtype):
        value = str(value)
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"Expected `{key}` to be a floating-point dtype such as 'bfloat16' or None, but got {value!r}."
        )
    return name


def _check_choice(group: Mapping[str, Any], key: str) -> None:
    if key in group and group[key] not in CHOICES[key]:
        names = ", ".join(str(choice) for choice in CHOICES[key])
        raise ValueError(f"Expected `{key}` of group {group['name']!r} to be one of {names}, but got {group[key]!r}.")


def check_number(key: str, value: Any, where: str = "") -> None:
    """Raise unless a number lies in the range of its option."""
    low, high = RANGES.get(key, (0, math.inf))
    try:
        ok = not isinstance(value, str) and low <= float(value) < high
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise ValueError(f"Expected `{key}`{where} to satisfy {low} <= {key} < {high}, but got {value!r}.")


def _check_group(group: dict[str, Any]) -> None:
    where = f" of group {group['name']!r}"
    for key in CHOICES:
        _check_choice(group, key)
    _check_lr(group, where)
    for key in RANGES:
        if key in group and not (group[key] is None and key in ("noise_floor", "clip")):
            check_number(key, group[key], where)
    if "q" in group and not (isinstance(group["q"], (int, float)) and 0 < group["q"] <= 1):
        raise ValueError(f"Expected `q`{where} to satisfy 0 < q <= 1, but got {group['q']!r}.")
    _check_betas(group, where)
    _check_whole_numbers(group, where)
    _check_radius(group, where)
    _check_parameters(group, where)


def _check_lr(group: dict[str, Any], where: str) -> None:
    if group["lr"] is None:
        raise ValueError(f"`lr`{where} is missing: it is the hidden radius, such as lr=0.02.")
    if group["lr"] == "auto":
        raise ValueError(
            f"Expected `lr`{where} to be a number, but got 'auto', which `lightning_gluon.configure_optimizers` knows: "
            "it adds a callback to the module's Trainer."
        )


def _check_betas(group: dict[str, Any], where: str) -> None:
    if "betas" in group:
        if not isinstance(group["betas"], (list, tuple)) or len(group["betas"]) != 2:
            raise ValueError(f"Expected `betas`{where} to be two numbers, but got {group['betas']!r}.")
        group["betas"] = tuple(group["betas"])
        for beta in group["betas"]:
            check_number("momentum", beta, f" (betas){where}")


def _check_parameters(group: dict[str, Any], where: str) -> None:
    if len(group["param_names"]) != len(group["params"]) or len(group["views"]) != len(group["params"]):
        raise ValueError(f"`param_names` and `views`{where} must be as long as `params` ({len(group['params'])}).")
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        if not parameter.is_floating_point():
            raise TypeError(f"{name!r} has dtype {parameter.dtype}; an LMO needs real floating-point parameters.")
        if parameter.ndim < 2 and NORMS[group["norm"]].matrices:
            raise ValueError(
                f"Norm {group['norm']!r}{where} is a norm of matrices, but {name!r} has shape "
                f"{tuple(parameter.shape)}. Give it the role 'bias', or the norm 'rms'."
            )


def _check_radius(group: dict[str, Any], where: str) -> None:
    radius = group["radius"]
    if isinstance(radius, (list, tuple)):
        if len(radius) != len(group["params"]):
            raise ValueError(
                f"Expected `radius`{where} to be one number or {len(group['params'])}, but got {len(radius)}."
            )
        if group["estimator"] == "adamw":
            raise ValueError(
                f"Expected one number as `radius`{where}: AdamW has one learning rate, but got {radius!r}."
            )
        group["radius"] = list(radius)
    for value in group["radius"] if isinstance(radius, (list, tuple)) else [radius]:
        check_number("radius", value, where)


def _check_whole_numbers(group: dict[str, Any], where: str) -> None:
    for key, (least, what) in WHOLE_NUMBERS.items():
        value = group.get(key, least)
        optional = key in ("rank", "orthogonalizer_steps") and value is None
        if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"Expected `{key}`{where} to be a whole number{what}, but got {value!r}.")


def check_ranks_fit(groups: list[dict[str, Any]]) -> None:
    """Raise if no matrix of the model can take the rank, and say once how many are carried dense instead."""
    groups = [group for group in groups if group.get("rank") is not None and NORMS[group["norm"]].matrices]
    members = [(group, index) for group in groups for index in range(len(group["params"]))]
    if not members:
        return
    sizes = [min(min(view.matrix[1:]) for view in views_of(group, index)) for group, index in members]
    rank = min(group["rank"] for group in groups)
    if rank > max(sizes):
        group, index = members[sizes.index(max(sizes))]
        raise ValueError(
            f"Expected `rank` to satisfy 1 <= rank <= min(out, in), but got rank={rank} and the largest matrix, "
            f"{group['param_names'][index]!r} with shape {tuple(group['params'][index].shape)}, allows {max(sizes)}. "
            "Lower `rank`, or set rank=None for the full carry."
        )
    dense = [(group, index) for group, index in members if not factored_of(group, index)]
    if dense:
        group, index = dense[0]
        warnings.warn(
            f"rank={rank} would not be smaller than the matrix itself for {len(dense)} of {len(members)} matrices, "
            f"such as {group['param_names'][index]!r} with shape {tuple(group['params'][index].shape)}: their momentum "
            "is carried in full.",
            stacklevel=4,
        )
