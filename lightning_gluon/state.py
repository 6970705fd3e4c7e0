"""The saved state: matched by name, kept in its dtype, counted in bytes."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from lightning_gluon.optimizer import Gluon

__all__ = ["match_saved_state", "memory"]


def match_saved_state(
    groups: list[dict[str, Any]], state_dict: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[Tensor, dict[str, Any]]]:
    """Reorder a saved state to the present groups, by the names of groups and parameters.

    Args:
        groups: The optimizer's groups.
        state_dict: The saved state.

    Returns:
        The saved groups in the present order, and the state of every parameter on its device, dtypes kept.

    Raises:
        ValueError: If a name is missing or unexpected, or a buffer's shape does not fit its parameter.
    """
    saved = deepcopy(state_dict["param_groups"])
    by_name = {group.get("name"): group for group in saved}
    if len(by_name) == len(saved) and set(by_name) == {group["name"] for group in groups}:
        saved = [by_name[group["name"]] for group in groups]
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in groups]:
        present, other = (_sizes(some) for some in (groups, saved))
        raise ValueError(f"The saved optimizer state has groups {other}, but this optimizer has {present}.")
    state: dict[Tensor, dict[str, Any]] = {}
    for group, old in zip(groups, saved, strict=True):
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


def _positions(group: dict[str, Any], saved: dict[str, Any]) -> list[int]:
    """Return where each present parameter stood in the saved group."""
    names = saved.get("param_names")
    if names is None:
        return list(range(len(group["params"])))
    where = {name: index for index, name in enumerate(names)}
    missing = [name for name in group["param_names"] if name not in where]
    if missing:
        extra = sorted(set(names) - set(group["param_names"]))
        raise ValueError(
            f"The saved state of group {group['name']!r} lacks {', '.join(map(repr, missing[:3]))} and has "
            f"{', '.join(map(repr, extra[:3]))} instead. Load it into the model it was saved from."
        )
    return [where[name] for name in group["param_names"]]


PARAMETER_SHAPED = ("momentum", "gradient_estimate", "last_gradient", "exp_avg", "exp_avg_sq", "previous")


def _move(name: str, parameter: Tensor, saved: dict[str, Any]) -> dict[str, Any]:
    for key in PARAMETER_SHAPED:
        if key in saved and saved[key].shape != parameter.shape:
            raise ValueError(
                f"The saved `{key}` of {name!r} has shape {tuple(saved[key].shape)}, but the parameter has shape "
                f"{tuple(parameter.shape)}."
            )
    return {
        key: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value for key, value in saved.items()
    }


REFERENCE_KEYS = ("previous", "displacement", "displacement_scale")


def memory(optimizer: Gluon) -> dict[str, Any]:
    """Return the persistent bytes of an optimizer's state.

    Args:
        optimizer: The optimizer, after at least one step.

    Returns:
        `state_bytes`, `bytes_per_parameter`, `by_role` (role -> bytes), `by_kind` (`momentum`, `reference`) and
        `workspace_bytes` (buffers reused between steps).
    """
    by_role: dict[str, int] = {}
    by_kind = {"momentum": 0, "reference": 0}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    size = value.numel() * value.element_size()
                    by_role[group["role"]] = by_role.get(group["role"], 0) + size
                    by_kind["reference" if key in REFERENCE_KEYS else "momentum"] += size
    total = sum(by_role.values())
    count = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    return {
        "state_bytes": total,
        "bytes_per_parameter": total / max(1, count),
        "by_role": by_role,
        "by_kind": by_kind,
        "workspace_bytes": optimizer._workspace.nbytes(),
    }
