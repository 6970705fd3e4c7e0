"""A saved state, matched by name and checked against the layout before anything changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.options import CHECKS, SETTINGS, Group
from lightning_gluon.step.checks import check_group
from lightning_gluon.step.state import Entries, state_layout
from lightning_gluon.valid import whole

COUNTS = ("steps", "gradient_evaluations")
IGNORE = "ignore"  # of `on_nonfinite`: such a run may hold anything


def match_saved_state(
    groups: Sequence[Group], state_dict: Mapping[str, Any], *, reference: bool
) -> tuple[list[Group], dict[Tensor, dict[str, Any]]]:
    """Reorder a saved state to the present groups, by the names of groups and parameters.

    Args:
        groups: The optimizer's groups.
        state_dict: The saved state.
        reference: Whether the previous iterate is kept.

    Returns:
        The saved groups in the present order, and the state of every parameter on its device, dtypes kept but for the
        moments of a kernel, which are in the parameter's.

    Raises:
        ValueError: If it is no optimizer's state, a name is missing or unexpected, a group was stepped by another norm
            or estimator, a value is out of range, or a buffer is missing, not finite or of another shape.
    """
    _check_form(state_dict)
    saved = _by_name(groups, deepcopy(list(state_dict["param_groups"])))
    _check_sizes(groups, saved)
    state: dict[Tensor, dict[str, Any]] = {}
    for group, old in zip(groups, saved, strict=True):
        _check_same_method(group, old)
        position = _positions(group, old)
        _check_values(group, old)
        old["params"] = [old["params"][place] for place in position]
        if isinstance(old["radius"], list):
            old["radius"] = [old["radius"][place] for place in position]
        old["param_names"], old["views"] = group["param_names"], group["views"]
        present = {**old, "params": group["params"]}
        for index, (parameter, key) in enumerate(zip(group["params"], old["params"], strict=True)):
            if state_dict["state"].get(key):
                state[parameter] = _take(present, index, state_dict["state"][key], reference)
    return saved, state


def _check_form(state_dict: Any) -> None:
    if not (isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(state_dict)):
        found = list(state_dict)[:3] if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(
            f"Expected what an optimizer's `state_dict()` returned, with `state` and `param_groups`, but got {found}."
        )
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping) or not all(isinstance(entry, Mapping) for entry in state.values()):
        raise ValueError("Expected `state` of the saved optimizer to map parameters to their buffers, by name.")
    listed = isinstance(groups, Sequence) and all(isinstance(group, Mapping) for group in groups)
    if not listed or not all(isinstance(group.get("params"), Sequence) for group in groups):
        raise ValueError("Expected `param_groups` of the saved optimizer to be a list of dicts with `params`.")


def _by_name(groups: Sequence[Group], saved: list[Group]) -> list[Group]:
    """Return saved groups in the order of the present ones, as far as names tell."""
    by_name = {group.get("name"): group for group in saved}
    if len(by_name) < len(saved) or set(by_name) != {group["name"] for group in groups}:
        return saved
    return [by_name[group["name"]] for group in groups]


def _check_sizes(groups: Sequence[Group], saved: Sequence[Group]) -> None:
    if [len(group["params"]) for group in saved] == [len(group["params"]) for group in groups]:
        return
    raise ValueError(
        f"The saved optimizer state has groups {_sizes(saved)}, but this optimizer has {_sizes(groups)}"
        f"{_difference(groups, saved)}. Load it into the model it was saved from, with the same parameters frozen, or "
        "load only the model's weights and let the optimizer start anew."
    )


def _sizes(groups: Iterable[Group]) -> str:
    return ", ".join(f"{group.get('name', '?')} ({len(group['params'])})" for group in groups)


def _difference(groups: Iterable[Group], saved: Iterable[Group]) -> str:
    """Name a parameter that only one side has."""
    here, there = _all_names(groups), _all_names(saved)
    for some, other, what in ((here, there, "a new"), (there, here, "no")):
        only = [name for name in some if name not in other]
        if only and other:
            return f" and {what} parameter {only[0]!r}"
    return ""


def _all_names(groups: Iterable[Group]) -> list[str]:
    return [name for group in groups for name in group.get("param_names", ())]


def _check_same_method(group: Group, saved: Group) -> None:
    """Raise if loading would put another method, the saved one, in the place of the one that was asked for."""
    for key in ("norm", "estimator"):
        if saved.get(key) != group[key]:
            raise ValueError(
                f"The saved state of group {group['name']!r} is of {key} {saved.get(key)!r}, but this optimizer has "
                f"{group[key]!r} there. Resume with the method that the state was saved with."
            )


def _positions(group: Group, saved: Group) -> list[int]:
    """Return where each present parameter stood in the saved group."""
    names = saved.get("param_names")
    if names is None:
        return list(range(len(group["params"])))
    where = {name: index for index, name in enumerate(names)}
    if len(where) < len(names) or len(names) != len(group["params"]):
        raise ValueError(f"Expected the saved group {group['name']!r} to have one name per parameter, but got {names}.")
    missing = [name for name in group["param_names"] if name not in where]
    unwrapped = {_unwrapped(name): index for name, index in where.items()}
    if missing and len(unwrapped) == len(names) and all(_unwrapped(name) in unwrapped for name in group["param_names"]):
        return [unwrapped[_unwrapped(name)] for name in group["param_names"]]
    if missing:
        extra = sorted(set(names) - set(group["param_names"]))
        raise ValueError(
            f"The saved state of group {group['name']!r} lacks {', '.join(map(repr, missing[:3]))} and has "
            f"{', '.join(map(repr, extra[:3]))} instead. Load it into the model it was saved from."
        )
    return [where[name] for name in group["param_names"]]


def _unwrapped(name: str) -> str:
    """Return a name as it is without `torch.compile`, Fabric or data parallelism around the module."""
    return re.sub(r"(^|\.)((_orig_mod|_forward_module)\.)+", r"\1", name).removeprefix("module.")


def _check_values(group: Group, saved: Group) -> None:
    """Raise unless a saved group has the values that this optimizer reads, in range."""
    read = [key for key in (*SETTINGS, *CHECKS, *COUNTS) if key in group]
    lacking = [key for key in read if key not in saved]
    if lacking:
        raise ValueError(f"The saved group {group['name']!r} lacks `{lacking[0]}`. Load a state that was saved whole.")
    merged = {**group, **{key: saved[key] for key in read}}
    try:
        check_group(merged)
        for key in COUNTS:
            whole(0)(key, merged[key], f" of group {group['name']!r}")
    except ValueError as error:
        raise ValueError(f"The saved state cannot be loaded. {error}") from None
    saved.update({key: merged[key] for key in read})


def _take(group: Group, index: int, saved: Mapping[str, Any], reference: bool) -> dict[str, Any]:
    """Return the buffers of one parameter, checked."""
    kind = group.get("reference", "copy") if reference else None
    layout = state_layout(group, index, kind).entries
    for key, entry in layout.items():
        _check_buffer(f"`{key}` of {group['param_names'][index]!r}", saved.get(key), entry, group)
    own_dtype: Entries = {} if ESTIMATORS[group["estimator"]].layout is None else layout
    parameter = group["params"][index]
    return {key: _place(parameter, value, alike=key in own_dtype) for key, value in saved.items()}


def _check_buffer(what: str, value: Any, entry: Tensor, group: Group) -> None:
    if value is None:
        raise ValueError(f"The saved state lacks {what}. Load a state that was saved whole.")
    if not isinstance(value, Tensor):
        raise ValueError(f"Expected the saved {what} to be a tensor, but got {type(value).__name__}.")
    if value.shape != entry.shape:
        raise ValueError(
            f"The saved {what} has shape {tuple(value.shape)}, but {tuple(entry.shape)} belongs to this parameter."
        )
    if value.is_floating_point() != entry.is_floating_point():
        raise ValueError(f"The saved {what} has dtype {value.dtype}, but {entry.dtype} belongs there.")
    if group["on_nonfinite"] != IGNORE and not value.is_meta and not bool(value.isfinite().all()):
        raise ValueError(f"The saved {what} is not finite. Load an earlier state.")


def _place(parameter: Tensor, value: Any, *, alike: bool) -> Any:
    """Return a copy on the parameter's device; `alike`: in its dtype and layout, as torch's kernel wants moments."""
    if not isinstance(value, Tensor):
        return value
    if alike and value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter).copy_(value)
    return value.to(parameter.device, copy=True)
