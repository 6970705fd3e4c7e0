"""A saved state, matched by name and checked against the layout before anything changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gluon.estimators.gamma import MOMENTS
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.options import CHECKS, SETTINGS, Group
from lightning_gluon.ranks.pieces import spread_like
from lightning_gluon.step.checks import check_group
from lightning_gluon.step.finite import IGNORE
from lightning_gluon.step.state import ParameterState, State, StateLayout, shared_layout, state_layout
from lightning_gluon.two_point.reference import ReferencePoint, Visit
from lightning_gluon.valid import number, pair_of, whole

WRAPPING = re.compile(r"(^|\.)((_orig_mod|_forward_module)\.)+")
COUNTS = ("steps", "gradient_evaluations")
FINITE_PAIR = pair_of(number(-math.inf, signs="< <"))


def match_saved_state(groups: Sequence[Group], state_dict: ParameterState) -> tuple[list[Group], State]:
    """Reorder a saved state to the present groups, by the names of groups and parameters.

    Args:
        groups: The optimizer's groups.
        state_dict: The saved state.

    Returns:
        The saved groups in the present order, and the state of every parameter on its device, dtypes kept but for the
        moments of a kernel, which are in the parameter's.

    Raises:
        ValueError: If it is no optimizer's state, a name is missing or unexpected, or a value is out of range. The same
            if a group was stepped by another norm or estimator, or a buffer is missing, not finite or of another shape.
    """
    _check_form(state_dict)
    saved = _align(groups, deepcopy(list(state_dict["param_groups"])))
    _check_sizes(groups, saved)
    pairs = [_Match(group, old) for group, old in zip(groups, saved, strict=True)]
    for pair in pairs:
        pair.check()
    points = [ESTIMATORS[old["estimator"]].point(old) for old in saved]  # by the saved options
    kind = ReferencePoint(saved, {}, points, Visit()).kind
    state: State = {}
    for pair in pairs:
        state.update(pair.buffers(state_dict["state"], kind))
    return saved, state


@dataclass(frozen=True)
class _Match:
    """A present group and its saved self, which is brought into the present order.

    Args:
        here: The present group.
        saved: A copy of the saved one.
    """

    here: Group
    saved: Group

    def check(self) -> None:
        """Raise unless the saved group is of the same method, parameters and options; reorder it."""
        for key in ("norm", "estimator"):
            if self.saved.get(key) != self.here[key]:
                raise ValueError(
                    f"The saved state of group {self.here['name']!r} is of {key} {self.saved.get(key)!r}, but this "
                    f"optimizer has {self.here[key]!r} there. Resume with the method that the state was saved with."
                )
        position = self._position()
        self._check_values()
        for key in ("params", "radius"):
            listed = self.saved[key]
            if isinstance(listed, list):
                self.saved[key] = [listed[place] for place in position]
        for key in ("param_names", "views"):
            self.saved[key] = self.here[key]

    def _position(self) -> list[int]:
        """Return the index of each present parameter in the saved group."""
        names, here = self.saved.get("param_names"), self.here["param_names"]
        if names is None:
            return list(range(len(here)))
        if len(set(names)) < len(names) or len(names) != len(here):
            raise ValueError(
                f"Expected the saved group {self.here['name']!r} to have one name per parameter, but got {names}."
            )
        found = _places(here, names) or _places(_bare_names(here), _bare_names(names))
        if found is None:
            raise ValueError(
                f"The saved state of group {self.here['name']!r} lacks {_first_of(here, but=names)} and has "
                f"{_first_of(names, but=here)} instead. Load it into the model it was saved from."
            )
        return found

    def _check_values(self) -> None:
        """Raise unless the saved group has the values that this optimizer reads, in range."""
        name = self.here["name"]
        read = [key for key in (*SETTINGS, *CHECKS, *COUNTS, "decay") if key in self.here]
        merged = dict(self.here)
        for key in read:
            if key not in self.saved:
                raise ValueError(f"The saved group {name!r} lacks `{key}`. Load a state that was saved whole.")
            merged[key] = self.saved[key]
        try:
            check_group(merged)
            for key in COUNTS:
                whole(0)(key, merged[key], f" of group {name!r}")
            if MOMENTS in self.saved:
                self.saved[MOMENTS] = FINITE_PAIR(MOMENTS, self.saved[MOMENTS], f" of group {name!r}")
        except ValueError as error:
            raise ValueError(f"The saved state cannot be loaded. {error}") from None
        for key in read:
            self.saved[key] = merged[key]

    def buffers(self, saved: Mapping[object, ParameterState], kind: str | None) -> State:
        """Return the checked buffers of every parameter that has some.

        Args:
            saved: All saved buffers.
            kind: How the previous iterate is kept.
        """
        group = {**self.saved, "params": self.here["params"]}
        found = {}
        for index, key in enumerate(self.saved["params"]):
            if saved.get(key):
                layout = state_layout(group, index, kind)
                found[group["params"][index]] = _take(group, index, saved[key], layout)
        return found


def _check_form(state_dict: object) -> None:
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


def _all_mappings(state: object) -> bool:
    return isinstance(state, Mapping) and all(isinstance(entry, Mapping) for entry in state.values())


def _align(groups: Sequence[Group], saved: list[Group]) -> list[Group]:
    """Return saved groups in the order of the present ones, as far as names tell."""
    by_name = {group.get("name"): group for group in saved}
    names = [group["name"] for group in groups]
    if len(by_name) < len(saved) or set(by_name) != set(names):
        return saved
    return [by_name[name] for name in names]


def _check_sizes(groups: Sequence[Group], saved: Sequence[Group]) -> None:
    if _counts(saved) == _counts(groups):
        return
    raise ValueError(
        f"The saved optimizer state has groups {_summary(saved)}, but this optimizer has {_summary(groups)}"
        f"{_difference(groups, saved)}. Load it into the model it was saved from, with the same parameters frozen, or "
        "load only the model's weights and let the optimizer start anew."
    )


def _counts(groups: Iterable[Group]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _summary(groups: Iterable[Group]) -> str:
    parts = []
    for group in groups:
        name = group.get("name", "?")
        parts.append(f"{name} ({len(group['params'])})")
    return ", ".join(parts)


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


def _places(here: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return the index of each present name among the saved ones; `None` if one is missing or two are alike."""
    where = {name: index for index, name in enumerate(names)}
    if len(where) < len(names) or not where.keys() >= set(here):
        return None
    return [where[name] for name in here]


def _first_of(names: Iterable[str], *, but: Iterable[str]) -> str:
    """Quote the first three names that are not among others."""
    known = set(but)
    rest = [repr(name) for name in names if name not in known]
    return ", ".join(rest[:3])


def _bare_names(names: Sequence[str]) -> list[str]:
    """Return names as they are without `torch.compile`, Fabric or data parallelism around the module."""
    bare = []
    for name in names:
        inner = WRAPPING.sub(r"\1", name)
        bare.append(inner.removeprefix("module."))
    return bare


def _take(group: Group, index: int, saved: ParameterState, layout: StateLayout) -> ParameterState:
    """Return the buffers of one parameter, checked."""
    parameter, name = group["params"][index], group["param_names"][index]
    for key, entry in layout.entries.items():
        _check_buffer(f"`{key}` of {name!r}", saved.get(key), entry, group)
    kernel = ESTIMATORS[group["estimator"]].layout is not None
    shared = shared_layout(group, index)
    taken = {}
    for key, value in saved.items():
        moment = kernel and key in layout.momentum
        if isinstance(value, Tensor) and key not in shared:
            value = spread_like(parameter, value)
        taken[key] = _copy_to(parameter, value, alike=moment)
    return taken


def _check_buffer(what: str, value: object, entry: Tensor, group: Group) -> None:
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


def _copy_to(parameter: Tensor, value: object, *, alike: bool) -> object:
    """Return a copy on the parameter's device; `alike`: in its dtype and layout, as torch's kernel wants moments."""
    if not isinstance(value, Tensor):
        return value
    if alike and value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter).copy_(value)
    return value.to(parameter.device, copy=True)
