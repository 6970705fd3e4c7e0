"""The saved state: matched by name, kept in its dtype, counted in bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.step.plan import chunk_limit, factored_of
from lightning_gluon.two_point.reference import reference_bytes

if TYPE_CHECKING:
    from lightning_gluon.optimizer import Gluon

__all__ = ["expected_bytes", "match_saved_state", "memory"]


def match_saved_state(
    groups: list[dict[str, Any]], state_dict: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[Tensor, dict[str, Any]]]:
    """Reorder a saved state to the present groups, by the names of groups and parameters.

    Args:
        groups: The optimizer's groups.
        state_dict: The saved state.

    Returns:
        The saved groups in the present order, and the state of every parameter on its device, dtypes kept but for
        AdamW's moments, which are in the parameter's.

    Raises:
        ValueError: If it is no optimizer's state, a name is missing or unexpected, a group was stepped by another norm
            or estimator, or a buffer's shape does not fit its parameter.
    """
    if not (isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(state_dict)):
        raise ValueError(
            "Expected what an optimizer's `state_dict()` returned, with `state` and `param_groups`, but got "
            f"{list(state_dict)[:3] if isinstance(state_dict, Mapping) else type(state_dict).__name__}."
        )
    saved = deepcopy(state_dict["param_groups"])
    by_name = {group.get("name"): group for group in saved}
    if len(by_name) == len(saved) and set(by_name) == {group["name"] for group in groups}:
        saved = [by_name[group["name"]] for group in groups]
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in groups]:
        present, other = (_sizes(some) for some in (groups, saved))
        present += _difference(groups, saved)
        raise ValueError(
            f"The saved optimizer state has groups {other}, but this optimizer has {present}. "
            "Load it into the model it was saved from, with the same parameters frozen, or load only the model's "
            "weights and let the optimizer start anew."
        )
    state: dict[Tensor, dict[str, Any]] = {}
    for group, old in zip(groups, saved, strict=True):
        _check_same_method(group, old)
        position = _positions(group, old)
        old["params"] = [old["params"][i] for i in position]
        for key in ("param_names", "views"):
            old[key] = group[key]
        if isinstance(old.get("radius"), list):
            old["radius"] = [old["radius"][i] for i in position]
        for name, parameter, key in zip(group["param_names"], group["params"], old["params"], strict=True):
            if key in state_dict["state"]:
                state[parameter] = _move(name, parameter, state_dict["state"][key])
    return saved, state


def _sizes(groups: list[dict[str, Any]]) -> str:
    return ", ".join(f"{group.get('name', '?')} ({len(group['params'])})" for group in groups)


def _difference(groups: list[dict[str, Any]], saved: list[dict[str, Any]]) -> str:
    """Name a parameter that only one side has."""
    here, there = ({name: None for group in some for name in group.get("param_names", ())} for some in (groups, saved))
    for some, other, what in ((here, there, "a new"), (there, here, "no")):
        only = [name for name in some if name not in other]
        if only and other:
            return f" and {what} parameter {only[0]!r}"
    return ""


def _check_same_method(group: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raise where loading would put another method, the saved one, in the place of the one that was asked for."""
    for key in ("norm", "estimator"):
        if saved.get(key) != group[key]:
            raise ValueError(
                f"The saved state of group {group['name']!r} is of {key} {saved.get(key)!r}, but this optimizer has "
                f"{group[key]!r} there. Resume with the method that the state was saved with."
            )


def _positions(group: dict[str, Any], saved: dict[str, Any]) -> list[int]:
    """Return where each present parameter stood in the saved group."""
    names = saved.get("param_names")
    if names is None:
        return list(range(len(group["params"])))
    where = {name: index for index, name in enumerate(names)}
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


PARAMETER_SHAPED = ("momentum", "gradient_estimate", "last_gradient", "exp_avg", "exp_avg_sq", "previous")


def _move(name: str, parameter: Tensor, saved: dict[str, Any]) -> dict[str, Any]:
    for key in PARAMETER_SHAPED:
        if key in saved and saved[key].shape != parameter.shape:
            raise ValueError(
                f"The saved `{key}` of {name!r} has shape {tuple(saved[key].shape)}, but the parameter has shape "
                f"{tuple(parameter.shape)}."
            )
    return {key: _place(key, parameter, value) for key, value in saved.items()}


def _place(key: str, parameter: Tensor, value: Any) -> Any:
    """Return a copy on the parameter's device, in the parameter's dtype and layout where torch's kernel wants that."""
    if key in ("exp_avg", "exp_avg_sq"):
        return torch.empty_like(parameter).copy_(value)
    return value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value


REFERENCE_KEYS = ("previous", "displacement", "displacement_scale")


def memory(optimizer: Gluon) -> dict[str, Any]:
    """Return the persistent bytes of an optimizer's state: counted after a step, before that computed from shapes.

    Args:
        optimizer: The optimizer; on the meta device the numbers are computed too.

    Returns:
        `state_bytes`, `bytes_per_parameter`, `by_role` (role -> bytes), `by_kind` (`momentum`, `reference`),
        `workspace_bytes` (buffers reused between steps) and `transient_bytes` (bound on what one round of a step holds
        in full-size fp32 copies beside the state).

    Example:
        >>> from lightning_gluon import Gluon
        >>> Gluon(torch.nn.Linear(3, 5), lr=0.1, method="adamw").memory()["by_kind"]
        {'momentum': 168, 'reference': 0}
    """
    by_role: dict[str, int] = {}
    by_kind = {"momentum": 0, "reference": 0}
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            sizes = (
                _counted(optimizer.state[parameter])
                if parameter in optimizer.state
                else expected_bytes(optimizer, group, index)
            )
            for kind, size in sizes.items():
                by_kind[kind] += size
                by_role[group["role"]] = by_role.get(group["role"], 0) + size
    total = sum(by_role.values())
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numels = [parameter.numel() for parameter in params]
    chunk = min(chunk_limit(params[0].device.type), sum(numels))
    return {
        "state_bytes": total,
        "bytes_per_parameter": total / max(1, sum(numels)),
        "by_role": by_role,
        "by_kind": by_kind,
        "workspace_bytes": optimizer._workspace.nbytes(),
        "transient_bytes": TRANSIENT_COPIES * 4 * max(chunk, *numels),
    }


# Working copies of a chunk at the worst moment: momentum, a direction, and with a tracked reference the weights before.
TRANSIENT_COPIES = 3


def _counted(state: dict[str, Any]) -> dict[str, int]:
    sizes = {"momentum": 0, "reference": 0}
    for key, value in state.items():
        if isinstance(value, Tensor):
            sizes["reference" if key in REFERENCE_KEYS else "momentum"] += value.numel() * value.element_size()
    return sizes


def expected_bytes(optimizer: Gluon, group: dict[str, Any], index: int) -> dict[str, int]:
    """Return the bytes that one parameter's state will take.

    Args:
        optimizer: The optimizer.
        group: One of its groups.
        index: Position of the parameter in it.

    Returns:
        Bytes by kind: `momentum` and `reference`.
    """
    parameter, buffers = group["params"][index], ESTIMATORS[group["estimator"]].buffers
    own, work = parameter.element_size(), 8 if parameter.dtype == torch.float64 else 4
    keep = getattr(torch, group["momentum_dtype"]).itemsize if group["momentum_dtype"] else work
    factored = factored_of(group, index)
    if group["estimator"] == "adamw":
        momentum = 2 * own * parameter.numel() + 4
    elif factored:
        ranks = [min(group["rank"], *view.matrix[1:]) for view in factored]
        momentum = work * sum(v.matrix[0] * r * (sum(v.matrix[1:]) + 1) for v, r in zip(factored, ranks, strict=True))
    else:
        momentum = len(buffers) * keep * parameter.numel()
    tracked = optimizer.reference_point is not None
    return {"momentum": momentum, "reference": reference_bytes(optimizer._reference.kind, parameter) if tracked else 0}
