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
from lightning_gluon.step.finite import IGNORE
from lightning_gluon.step.state import state_layout
from lightning_gluon.two_point.reference import ReferencePoint, Visit
from lightning_gluon.valid import whole

COUNTS = ("steps", "gradient_evaluations")


def match_saved_state(
    groups: Sequence[Group], state_dict: Mapping[str, Any]
) -> tuple[list[Group], dict[Tensor, dict[str, Any]]]:
    """Reorder a saved state to the present groups, by the names of groups and parameters.

    Args:
        groups: The optimizer's groups.
        state_dict: The saved state.

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
    for group, old in zip(groups, saved, strict=True):
        _check_same_method(group, old)
        position = _positions(group, old)
        _check_values(group, old)
        _reorder(group, old, position)
    points = [ESTIMATORS[group["estimator"]].point(group) for group in saved]  # by the saved options
    reference = ReferencePoint(saved, {}, points, Visit()).kind
    state: dict[Tensor, dict[str, Any]] = {}
    for group, old in zip(groups, saved, strict=True):
        state.update(_buffers(group, old, state_dict["state"], reference))
    return saved, state


def _reorder(group: Group, saved: Group, position: Sequence[int]) -> None:
    """Bring what a saved group lists into the order of the present one."""
    saved["params"] = [saved["params"][place] for place in position]
    if isinstance(saved["radius"], list):
        saved["radius"] = [saved["radius"][place] for place in position]
    saved["param_names"] = group["param_names"]
    saved["views"] = group["views"]


def _buffers(
    group: Group, saved: Group, buffers: Mapping[Any, Mapping[str, Any]], reference: str | None
) -> dict[Tensor, dict[str, Any]]:
    """Return the checked buffers of every parameter that has some."""
    present = {**saved, "params": group["params"]}
    found = {}
    for index, key in enumerate(saved["params"]):
        if buffers.get(key):
            found[group["params"][index]] = _take(present, index, buffers[key], reference)
    return found


def _check_form(state_dict: Any) -> None:
    if not isinstance(state_dict, Mapping):
        raise _no_state(type(state_dict).__name__)
    if not {"state", "param_groups"} <= set(state_dict):
        raise _no_state(str(list(state_dict)[:3]))
    if not _all_mappings(state_dict["state"]):
        raise ValueError("Expected `state` of the saved optimizer to map parameters to their buffers, by name.")
    groups = state_dict["param_groups"]
    wrong = not isinstance(groups, Sequence) or not all(isinstance(group, Mapping) for group in groups)
    if wrong or not all(isinstance(group.get("params"), Sequence) for group in groups):
        raise ValueError("Expected `param_groups` of the saved optimizer to be a list of dicts with `params`.")


def _no_state(found: str) -> ValueError:
    return ValueError(
        f"Expected what an optimizer's `state_dict()` returned, with `state` and `param_groups`, but got {found}."
    )


def _all_mappings(state: Any) -> bool:
    return isinstance(state, Mapping) and all(isinstance(entry, Mapping) for entry in state.values())


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
    if not here or not there:
        return ""
    for name in here:
        if name not in there:
            return f" and a new parameter {name!r}"
    for name in there:
        if name not in here:
            return f" and no parameter {name!r}"
    return ""


def _all_names(groups: Iterable[Group]) -> dict[str, None]:
    """Return all names of parameters, in order."""
    names: dict[str, None] = {}
    for group in groups:
        names.update(dict.fromkeys(group.get("param_names", ())))
    return names


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
    names, present = saved.get("param_names"), group["param_names"]
    if names is None:
        return list(range(len(present)))
    if len(set(names)) < len(names) or len(names) != len(present):
        raise ValueError(f"Expected the saved group {group['name']!r} to have one name per parameter, but got {names}.")
    where = {name: index for index, name in enumerate(names)}
    if all(name in where for name in present):
        return [where[name] for name in present]
    bare = {_unwrapped(name): index for name, index in where.items()}
    bare_present = [_unwrapped(name) for name in present]
    if len(bare) == len(names) and all(name in bare for name in bare_present):
        return [bare[name] for name in bare_present]
    raise ValueError(
        f"The saved state of group {group['name']!r} lacks {_first_of(present, but=where)} and has "
        f"{_first_of(names, but=present)} instead. Load it into the model it was saved from."
    )


def _first_of(names: Iterable[str], *, but: Iterable[str]) -> str:
    """Quote the first three names that are not among others."""
    known = set(but)
    rest = [repr(name) for name in names if name not in known]
    return ", ".join(rest[:3])


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


def _take(group: Group, index: int, saved: Mapping[str, Any], reference: str | None) -> dict[str, Any]:
    """Return the buffers of one parameter, checked."""
    layout = state_layout(group, index, reference)
    parameter, name = group["params"][index], group["param_names"][index]
    for key, entry in layout.entries.items():
        _check_buffer(f"`{key}` of {name!r}", saved.get(key), entry, group)
    taken = {}
    for key, value in saved.items():
        moment = key in layout.momentum and ESTIMATORS[group["estimator"]].layout is not None
        taken[key] = _place(parameter, value, alike=moment)
    return taken


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
    watched = group["on_nonfinite"] != IGNORE and not value.is_meta  # a run that ignores it may hold anything
    if watched and not bool(value.isfinite().all()):
        raise ValueError(f"The saved {what} is not finite. Load an earlier state.")


def _place(parameter: Tensor, value: Any, *, alike: bool) -> Any:
    """Return a copy on the parameter's device; `alike`: in its dtype and layout, as torch's kernel wants moments."""
    if not isinstance(value, Tensor):
        return value
    if alike and value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter).copy_(value)
    return value.to(parameter.device, copy=True)
