"""Checks of parameter groups: when they are made, when they are loaded, and before a step that finds them changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_gluon.estimators.gamma import is_estimated
from lightning_gluon.estimators.quantize import QUANTIZERS
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import METHODS, Method
from lightning_gluon.norms.clipped import ClippedRow
from lightning_gluon.norms.spectral import Spectral
from lightning_gluon.norms.table import NORMS, REFINEMENTS, norm_of
from lightning_gluon.options import CHECKS, SETTINGS, Group
from lightning_gluon.ranks.pieces import is_sharded
from lightning_gluon.registry import load_plugins
from lightning_gluon.roles import ROLES
from lightning_gluon.step.decay import DECAYS
from lightning_gluon.step.plan import factored_of, views_of
from lightning_gluon.step.retraction import RETRACTIONS
from lightning_gluon.valid import did_you_mean, one_of, whole

# Options of every group, whatever its norm and estimator, with their defaults.
COMMON: dict[str, Any] = {
    "momentum_dtype": None,  # a torch dtype by name; None: fp32, or fp64 for fp64 parameters
    "on_nonfinite": "raise",
    "noise_floor": None,  # None: that of the precision, see `step.noise`
    "retract": None,
}
USUAL_DECAY = "plain"
# Any method may be given a spectral norm, or one of rows for its tables.
ANY_METHOD = ("start", "decay", *Spectral.options, *ClippedRow.options)
LAYERS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)


def find_method(name: str) -> Method:
    """Return a row of the method table, or raise naming the rows there are."""
    load_plugins()
    if not isinstance(name, str) or name not in METHODS:
        near = did_you_mean(name, METHODS)
        raise ValueError(f"Expected `method` to be one of {', '.join(METHODS)}, but got {name!r}.{near}")
    return METHODS[name]


def options_of(row: Method) -> set[str]:
    """Return the names of the options that a method takes."""
    names = {*COMMON, *ANY_METHOD}
    for estimator in row.estimators:
        names.update(ESTIMATORS[estimator].options)
    for norm in row.norms:
        names.update(NORMS[norm].options)
        if NORMS[norm] is Spectral:
            for refinement in REFINEMENTS.values():
                names.update(NORMS[refinement].options)
    return names


def check_options(method: str, options: Iterable[str]) -> None:
    """Raise unless a method knows all of its options, before anything is made of them."""
    accepted = options_of(find_method(method))
    for option in options:
        if option not in accepted:
            near = did_you_mean(option, accepted.union(SETTINGS))
            raise ValueError(
                f"Unknown option `{option}` for method {method!r}. Expected one of: {', '.join(sorted(accepted))}; or "
                f"{', '.join(SETTINGS)}.{near}"
            )


def check_names(group: Group) -> None:
    """Raise unless role, norm and estimator of a group are known."""
    where = _where(group)
    for key, known in (("role", ROLES), ("norm", NORMS), ("estimator", ESTIMATORS)):
        if key in group:
            one_of(*known)(key, group[key], where)


def check_group(group: Group) -> None:
    """Check every value of a complete group, and keep the result of each check.

    Args:
        group: The group.

    Raises:
        ValueError: If a value is out of range, or does not fit the parameters.
        TypeError: If a parameter is not real floating-point.
    """
    check_names(group)
    check_values(group)
    _check_parameters(group, _where(group))


def check_values(group: Group) -> None:
    """Check options and numbers of a complete group, and keep the result of each check.

    Args:
        group: The group.

    Raises:
        ValueError: If one is out of range.
    """
    where = _where(group)
    _check_lr_given(group, where)
    for key in filter(group.__contains__, CHECKS):
        group[key] = CHECKS[key](key, group[key], where)
    for key in ("lr", "momentum", "weight_decay"):
        SETTINGS[key](key, group[key], where)
    _check_radius(group, where)
    _check_kind_of_decay(group, where)
    _check_retraction(group, where)
    norm_of(group)  # which checks how its options go together
    _check_correction(group, where)


def values_of(group: Group) -> list[object]:
    """Return the values that `check_values` checks, as they are now; lists are copies, as schedules write into them."""
    found: list[object] = []
    for key in (*SETTINGS, *CHECKS, "decay"):
        if key in group:
            value = group[key]
            found.append(list(value) if isinstance(value, list) else value)
    return found


def _check_kind_of_decay(group: Group, where: str) -> None:
    """Raise unless a group can decay as it says.

    Args:
        group: A group with an estimator.
        where: Whose it is, for the message.

    Raises:
        ValueError: If the decay is unknown, or the estimator decays by itself.
    """
    decay = group["decay"]
    one_of(*DECAYS)("decay", decay, where)
    if decay != USUAL_DECAY and ESTIMATORS[group["estimator"]].step_ is not None:
        raise ValueError(
            f"Expected `decay`{where} to be {USUAL_DECAY!r}, but got {decay!r}: AdamW decays all of its weights alike. "
            "Leave `decay` out."
        )


def _check_correction(group: Group, where: str) -> None:
    """Raise if a gamma is to be estimated, but the second gradient it is read from is not there."""
    if not is_estimated(group):
        return
    if ESTIMATORS[group["estimator"]].reference is None:
        raise ValueError(
            f"Expected `gamma`{where} to be a number, but got 'auto': estimator {group['estimator']!r} takes no second "
            "gradient of the same sample, whose noise could be read. Give `gamma` a number."
        )
    if group.get("fold"):
        raise ValueError(
            f"Expected `gamma`{where} to be a number with `fold`, but got 'auto': the two gradients share one buffer, "
            "so their difference cannot be read. Remove one of the two."
        )


def _check_retraction(group: Group, where: str) -> None:
    retract = group["retract"]
    one_of(None, *RETRACTIONS)("retract", retract, where)
    if retract is not None and not NORMS[group["norm"]].stacks:
        raise ValueError(
            f"Expected `retract`{where} to be None, but got {retract!r}: norm {group['norm']!r} reads no matrices. "
            "Leave `retract` out."
        )


def _check_radius(group: Group, where: str) -> None:
    radius = group["radius"]
    if not isinstance(radius, (list, tuple)):
        SETTINGS["radius"]("radius", radius, where)
        return
    if len(radius) != len(group["params"]):
        raise ValueError(f"Expected `radius`{where} to be one number or {len(group['params'])}, but got {len(radius)}.")
    if ESTIMATORS[group["estimator"]].step_ is not None:
        raise ValueError(f"Expected one number as `radius`{where}: AdamW has one learning rate, but got {radius!r}.")
    for value in radius:
        SETTINGS["radius"]("radius", value, where)


def _where(group: Group) -> str:
    return f" of group {group['name']!r}"


def _check_lr_given(group: Group, where: str) -> None:
    if group["lr"] is None:
        raise ValueError(f"`lr`{where} is missing: it is the hidden radius, such as lr=0.02.")
    if isinstance(group["lr"], str) and group["lr"] == "auto":
        raise ValueError(
            f"Expected `lr`{where} to be a number, but got 'auto', which `lightning_gluon.configure_optimizers` knows: "
            "it adds a callback to the module's Trainer."
        )


def _check_parameters(group: Group, where: str) -> None:
    count = len(group["params"])
    if len(group["param_names"]) != count or len(group["views"]) != count:
        raise ValueError(f"`param_names` and `views`{where} must be as long as `params` ({count}).")
    _check_partners(group, where)
    matrices = NORMS[group["norm"]].matrices
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        check_whole(name, parameter)
        if group["momentum_dtype"] in QUANTIZERS and is_sharded(parameter):
            raise NotImplementedError(
                f"`momentum_dtype={group['momentum_dtype']!r}`{where} does not work yet where weights are spread over "
                f"ranks, as {name!r} is. Take 'bfloat16'."
            )
        if not parameter.is_floating_point():
            raise TypeError(f"{name!r} has dtype {parameter.dtype}; an LMO needs real floating-point parameters.")
        if parameter.ndim < 2 and matrices:
            raise ValueError(
                f"Norm {group['norm']!r}{where} is a norm of matrices, but {name!r} has shape "
                f"{tuple(parameter.shape)}. Give it the role 'bias', or the norm 'rms'."
            )


def _check_partners(group: Group, where: str) -> None:
    """Raise unless every parameter has its partner, where the norm reads one."""
    if not NORMS[group["norm"]].reads_partner:
        return
    names = group["param_names"]
    partners = group.get("partners") or [None] * len(names)
    lacking = [name for name, partner in zip(names, partners, strict=False) if partner is None]
    if lacking or len(partners) != len(names):
        name = (lacking or names)[0]
        raise ValueError(
            f"Norm {group['norm']!r}{where} reads the other factor of a product, but that of {name!r} is not known. "
            "Pass the model itself, give `partners`, or give it the role 'hidden'."
        )


def check_whole(name: str, parameter: Tensor) -> None:
    """Raise if a parameter is a piece of one that does not know its place: the flat parameter of FSDP1.

    Args:
        name: Its name.
        parameter: The parameter.

    Raises:
        NotImplementedError: If it is a piece.
    """
    if getattr(parameter, "_is_flat_param", False) or "_fsdp_wrapped_module" in name:
        raise NotImplementedError(_sharded(f"{name!r} belongs to FSDP's flat parameter"))


def _sharded(what: str) -> str:
    return (
        f"{what}. An LMO needs whole matrices, and pieces of FSDP1 or DeepSpeed do not say which they belong to. Shard "
        "with `fully_shard` (FSDP2) or `parallelize_module`, which is what `ModelParallelStrategy` is for, or use DDP."
    )


def check_whole_module(module: nn.Module) -> None:
    """Raise if the matrices of a module are spread over ranks as flat pieces, by FSDP1 or DeepSpeed.

    Args:
        module: The module.

    Raises:
        NotImplementedError: If a parameter is a piece, or a layer that owns a matrix holds a vector in its place.
    """
    for name, parameter in module.named_parameters():
        check_whole(name, parameter)
    for name, layer in module.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        weight = layer._parameters.get("weight")  # not one that is computed from others
        if weight is None or isinstance(weight, nn.UninitializedParameter):
            continue
        if weight.ndim < 2:
            kind, shape = type(layer).__name__, tuple(weight.shape)
            raise NotImplementedError(_sharded(f"The weight of {name!r}, a {kind}, has shape {shape}"))


def check_lengths(groups: Iterable[Group], method: str) -> None:
    """Raise unless the length of the training is known where an estimator's memory is a share of it.

    Args:
        groups: Complete groups.
        method: Their method.

    Raises:
        ValueError: If it is not known, or no number of steps.
    """
    for group in groups:
        if not ESTIMATORS[group["estimator"]].length:
            continue
        if group["total_steps"] is None:
            raise ValueError(
                f"Method {method!r} needs to know how long the training is, since its memory is a share of it, but "
                "`total_steps` is unknown. Pass `total_steps=`, the optimizer steps in all."
            )
        whole(1)("total_steps", group["total_steps"], _where(group))


def check_ranks_fit(groups: Sequence[Group], row: Method) -> None:
    """Raise if no matrix can take a rank that was asked for, and warn once of those that are carried dense.

    Args:
        groups: Complete groups.
        row: Their method, whose own rank nobody asked for.

    Raises:
        ValueError: If the rank is larger than that of any matrix.
    """
    members = []
    for group in groups:
        if group.get("rank") is not None and NORMS[group["norm"]].matrices:
            members += [_Ranked(group, index) for index in range(len(group["params"]))]
    if not members:
        return
    rank = min(member.group["rank"] for member in members)
    largest = max(members, key=_Ranked.limit)
    usual = {rule.options.get("rank") for rule in row.rules.values()}
    if rank > largest.limit() and rank not in usual:
        raise ValueError(
            f"Expected `rank` to satisfy 1 <= rank <= min(out, in), but got rank={rank} and the largest matrix, "
            f"{largest}, allows {largest.limit()}. Lower `rank`, or set rank=None for the full carry."
        )
    dense = [member for member in members if not factored_of(member.group, member.index)]
    if dense:
        warnings.warn(
            f"rank={rank} would not be smaller than the matrix itself for {len(dense)} of {len(members)} matrices, "
            f"such as {dense[0]}: their momentum is carried in full.",
            stacklevel=4,
        )


@dataclass(frozen=True)
class _Ranked:
    """A parameter whose momentum is to be carried at low rank."""

    group: Group
    index: int

    def __str__(self) -> str:
        name, parameter = self.group["param_names"][self.index], self.group["params"][self.index]
        return f"{name!r} with shape {tuple(parameter.shape)}"

    def limit(self) -> int:
        """Return the largest rank of all of its matrices."""
        sizes: list[int] = []
        for view in views_of(self.group, self.index):
            sizes += view.matrix[1:]
        return min(sizes)
