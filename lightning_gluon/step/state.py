"""The layout of the state, declared once: creation, bytes, loading and checkpoints are held to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_gluon.estimators.carry import carry_layout
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms.needs import Needs
from lightning_gluon.norms.table import NORMS, norm_of
from lightning_gluon.options import Group
from lightning_gluon.ranks.pieces import is_sharded, local
from lightning_gluon.step.plan import chunk_limit, factored_of, views_of
from lightning_gluon.step.retraction import RETRACTIONS
from lightning_gluon.two_point.reference import reference_layout

MetaTensors: TypeAlias = dict[str, Tensor]  # shapes and dtypes: tensors on the meta device
ParameterState: TypeAlias = dict[str, Any]  # of one parameter
State: TypeAlias = dict[Tensor, ParameterState]

# Working copies of a chunk at the worst moment: momentum, a direction, and with a tracked reference the weights before.
TRANSIENT_COPIES = 3


@dataclass(frozen=True)
class StateLayout:
    """Everything that is kept for one parameter from step to step.

    Args:
        momentum: ParameterState of the estimator, and statistics of norm and retraction.
        reference: The previous iterate, if a method needs it.
    """

    momentum: MetaTensors
    reference: MetaTensors

    @property
    def entries(self) -> MetaTensors:
        """Both together."""
        return {**self.momentum, **self.reference}


def state_layout(group: Group, index: int, reference: str | None) -> StateLayout:
    """Return the layout of one parameter's state.

    Args:
        group: A complete group.
        index: Position of the parameter in it.
        reference: How the previous iterate is kept; `None` if no method of the optimizer needs it.

    Returns:
        Shapes and dtypes by key.

    Example:
        >>> from lightning_gluon import Gluon
        >>> group = Gluon(torch.nn.Linear(3, 5), lr=0.1).param_groups[0]
        >>> state_layout(group, 0, "step").entries.keys()
        dict_keys(['momentum', 'displacement'])
    """
    parameter, estimator = group["params"][index], ESTIMATORS[group["estimator"]]
    if estimator.layout is not None:
        momentum = estimator.layout(parameter)
    else:
        momentum = carry_layout(estimator.names(group), parameter, factored_of(group, index), group)
    momentum.update(_statistics_layout(group, index))
    return StateLayout(momentum, reference_layout(reference, parameter) if reference is not None else {})


def shared_layout(group: Group, index: int) -> MetaTensors:
    """Return the part of one parameter's state that is the same on all ranks: low-rank factors and statistics.

    Args:
        group: A complete group.
        index: Position of the parameter in it.
    """
    factors = carry_layout((), group["params"][index], factored_of(group, index), {**group, "feedback": None})
    return {**factors, **_statistics_layout(group, index)}


def _statistics_layout(group: Group, index: int) -> MetaTensors:
    parts: list[Needs] = [norm_of(group)]
    if group.get("retract") is not None:
        parts.append(RETRACTIONS[group["retract"]])
    declared = [statistic for part in parts for statistic in part.statistics]
    if not declared:
        return {}
    found = {}
    dtype = group["params"][index].dtype
    for number, view in enumerate(views_of(group, index)):
        batch, rows, columns = view.matrix
        if NORMS[group["norm"]].turns and rows > columns:
            rows, columns = columns, rows
        matrices = torch.empty(batch, rows, columns, dtype=dtype, device="meta")
        for statistic in declared:
            found[f"{statistic.name}{number}"] = statistic.first(matrices)
    return found


def _share_here(group: Group, index: int) -> dict[str, float]:
    """Return the part of a parameter's entries that this rank holds, by key of what is laid out like it."""
    parameter = group["params"][index]
    if not is_sharded(parameter):
        return {}
    part = local(parameter).numel() / max(1, parameter.numel())
    entries = state_layout(group, index, None).entries.keys() - shared_layout(group, index).keys()
    return dict.fromkeys([*entries, "previous", "displacement", "displacement_scale"], part)


def memory(
    groups: Sequence[Group], state: Mapping[Tensor, ParameterState], *, reference: str | None, workspace_bytes: int = 0
) -> ParameterState:
    """Return the persistent bytes of an optimizer's state: counted after a step, before that computed from shapes.

    On many ranks they are those of this one.

    Args:
        groups: Its complete groups; on the meta device the numbers are computed too.
        state: Its state, by parameter.
        reference: How the previous iterate is kept; `None` if no method needs it.
        workspace_bytes: Bytes of buffers that are reused between steps.

    Returns:
        `state_bytes`, `bytes_per_parameter`, `by_role` (role -> bytes), `by_kind` (`momentum`, `reference`),
        `workspace_bytes` and `transient_bytes` (bound on the full-size fp32 copies that one round of a step holds
        besides the state).

    Example:
        >>> from lightning_gluon import Gluon
        >>> Gluon(torch.nn.Linear(3, 5), lr=0.1, method="adamw").memory()["by_kind"]
        {'momentum': 168, 'reference': 0}
    """
    by_role: Counter[str] = Counter()
    by_kind = Counter(momentum=0, reference=0)
    for group in groups:
        for index, parameter in enumerate(group["params"]):
            layout = state_layout(group, index, reference)
            kept = state.get(parameter, layout.entries)
            share = _share_here(group, index)
            for key, value in kept.items():
                if isinstance(value, Tensor):
                    kind = "reference" if key in layout.reference else "momentum"
                    here = round(value.nbytes * share.get(key, 1.0)) if value.is_meta else local(value).nbytes
                    by_kind[kind] += here
                    by_role[group["role"]] += here
    params = [parameter for group in groups for parameter in group["params"]]
    numels = [parameter.numel() for parameter in params]
    chunk = min(chunk_limit(params[0].device.type), sum(numels))
    return {
        "state_bytes": by_role.total(),
        "bytes_per_parameter": by_role.total() / max(1, sum(numels)),
        "by_role": dict(by_role),
        "by_kind": dict(by_kind),
        "workspace_bytes": workspace_bytes,
        "transient_bytes": TRANSIENT_COPIES * 4 * max(chunk, *numels),
    }
