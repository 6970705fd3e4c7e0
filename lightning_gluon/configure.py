"""The one line: `return lightning_gluon.configure_optimizers(self, method="gluon", lr=...)`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from typing_extensions import Unpack

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import DEFAULT_METHOD, Method
from lightning_gluon.optimizer import Gluon
from lightning_gluon.options import Options
from lightning_gluon.partition.build import partition as route
from lightning_gluon.partition.overrides import Rules
from lightning_gluon.partition.result import Partition
from lightning_gluon.radius.schedules import RadiusSchedule, Schedule
from lightning_gluon.ranks.groups import Ranks
from lightning_gluon.replay.lightning import replicas_of, stepping_batches, trainer_of
from lightning_gluon.step.checks import check_options, check_whole_module, find_method
from lightning_gluon.step.decay import read_decay
from lightning_gluon.step.noise import NOISE_FLOOR
from lightning_gluon.two_point.closures import CALLBACK
from lightning_gluon.valid import number

if TYPE_CHECKING:
    from lightning_gluon.replay.lightning import Trainer

__all__ = ["configure_optimizers", "equivalent_learning_rates"]

# An fp32 gradient hides the precision it was computed in, so the Trainer is asked.
MIXED_NOISE_FLOOR = {"bf16-mixed": NOISE_FLOOR[torch.bfloat16], "16-mixed": NOISE_FLOOR[torch.float16]}

AUTO = "auto"
UNSCHEDULED = "constant"
ENDLESS = (UNSCHEDULED, "theory")  # schedules that do not depend on the length of the training
# The nominal radius of `lr="auto"`; calibration starts at 1/64 of it, far below the .018 to .05 that tuning finds.
AUTO_LR = 0.02
# Where nothing else ends the ramp it ends at five times that, and steps back to 0.05.
AUTO_LARGEST = 5.0


def configure_optimizers(
    module: nn.Module,
    method: str = DEFAULT_METHOD,
    *,
    lr: float | str,
    weight_decay: float | Mapping[str, float] | None = None,
    radius: Mapping[str, float] | None = None,
    momentum: float | None = None,
    schedule: str = "constant",
    warmup: int | float = 0,
    decay: float | str | None = None,
    total_steps: int | None = None,
    partition: Partition | None = None,
    rules: Rules | None = None,
    per_head: bool = False,
    share_work: bool | str = "auto",
    **options: Unpack[Options],
) -> Any:
    """Return what a module's `configure_optimizers` should: the optimizer of a method, and its schedule.

        X <- (1 - lr * weight_decay) X - lr * radius[role] * D(M)          ||D(M)|| <= 1 in the norm of the role

    Shapes: any. Each parameter is read as the matrices `(out, in)` that its layer holds, or as one vector.

    Args:
        module: Any `nn.Module`; a `LightningModule` tells its Trainer's length and precision.
        method: A row of `lightning_gluon.METHODS`.
        lr: The hidden radius: length of a step of a hidden matrix in its own norm. For `adamw` the learning rate.
            `"auto"` finds it in the first third of the training at most, at the default ratios between roles, by adding
            `lightning_gluon.callbacks.RadiusScheduler(rule="calibrate")` to the module's Trainer.
        weight_decay: Decoupled decay in units of 1 / lr, one value or one per role; default: the method's.
        radius: Radii relative to the hidden one, by role; default: the method's (see `lightning_gluon.methods`).
        momentum: Weight on the old momentum, in [0, 1); default: the method's.
        schedule: `constant`, `cosine`, `linear`, `wsd`, `theory` (decay of the papers' theorems) or `theory_constant`.
        warmup: Linear warmup in optimizer steps, or as a share of all steps if below 1.
        decay: A number is the share of the steps that `wsd` decays over, .2 by default. A string is how weights decay:
            `plain`, `cautious` or `follows_lr`, see `Gluon`.
        total_steps: Optimizer steps in all; default: the Trainer's `estimated_stepping_batches`.
        partition: A partition to use instead of `lightning_gluon.partition(module)`.
        rules: Roles by name glob or module type, for `lightning_gluon.partition`, as in `{"stem.*": "hidden"}`.
        per_head: Whether queries, keys and values are one matrix per head, see `lightning_gluon.partition`.
        share_work: Whether the ranks of DDP share the LMOs; `auto` times both ways in the first steps.
        **options: Options of the method, see `lightning_gluon.options.Options`.

    Returns:
        The optimizer if `schedule` is constant without warmup, else Lightning's dict with a scheduler that is stepped
        every step.

    Raises:
        TypeError: If `rules` are no rules, or a parameter is not of a real floating-point type.
        ValueError: If a name is unknown, a value out of range, a parameter is without a role, a partition is of another
            module, or a schedule needs a length nobody knows.
        NotImplementedError: If parameters are sharded over ranks by FSDP1 or DeepSpeed.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> configured = configure_optimizers(model, "muon", lr=0.02, schedule="cosine", warmup=0.1, total_steps=100)
        >>> configured["lr_scheduler"]["interval"], configured["lr_scheduler"]["scheduler"].schedule.warmup
        ('step', 10)
    """
    row = find_method(method)
    trainer = trainer_of(module)
    length = _training_length(trainer, row, schedule, warmup) if total_steps is None else total_steps
    share, kind = read_decay(decay)
    plan = Schedule(schedule, length, warmup_steps(warmup, length), share, row.theory)
    check_options(method, [option for option in options if option != "compile"])
    check_whole_module(module)
    routed = _routed(module, partition, rules, per_head)
    if isinstance(lr, str):
        lr = _calibrated(lr, trainer)
    if trainer is not None:
        options.setdefault("noise_floor", MIXED_NOISE_FLOOR.get(str(trainer.precision)))
    ranks = None if trainer is None else replicas_of(trainer)
    messages = any(ESTIMATORS[rule.estimator].messages for rule in row.rules.values())
    if messages:
        options.setdefault("workers", Ranks.of(ranks).size)
    optimizer = Gluon(
        module if routed is None else routed,
        lr,
        method=method,
        weight_decay=weight_decay,
        radius=radius,
        momentum=momentum,
        decay=kind,
        total_steps=length,
        process_group=ranks,
        share_work=share_work,
        **options,
    )
    if trainer is not None:
        _attach_portable_state(trainer)
    if trainer is not None and messages:
        _attach_exchange(trainer)
    if trainer is not None and getattr(module, "automatic_optimization", True):
        _attach_second_gradient(optimizer, trainer)
    if schedule == UNSCHEDULED and not warmup:
        return optimizer
    scheduler = RadiusSchedule(optimizer, plan)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "gluon"}}


def _training_length(trainer: Trainer | None, row: Method, schedule: str, warmup: int | float) -> int | None:
    """Return the Trainer's optimizer steps, if method, schedule or warmup are measured in them."""
    if trainer is None or (schedule in ENDLESS and not _is_share(warmup) and not row.needs_length):
        return None
    return stepping_batches(trainer)


def _is_share(warmup: int | float) -> bool:
    return isinstance(warmup, float) and 0 < warmup < 1


def _routed(module: nn.Module, partition: Partition | None, rules: Rules | None, per_head: bool) -> Partition | None:
    """Return the partition that was asked for, by itself, by rules or by heads."""
    if partition is None:
        asked = rules is not None or per_head
        return route(module, rules=rules, per_head=per_head) if asked else None
    for name, given in (("rules", rules is not None), ("per_head", per_head)):
        if given:
            raise ValueError(f"Expected `partition` or `{name}`, but got both. Give `{name}` to the partition.")
    _check_own(partition, module)
    return partition


def _attach_second_gradient(optimizer: Gluon, trainer: Trainer) -> None:
    """Add the callback that takes the second gradient, if the method needs one."""
    if optimizer.reference_point is None:
        return
    from lightning_gluon.callbacks.variance_reduction import VarianceReduction

    VarianceReduction.attach(trainer)
    optimizer.two_point = CALLBACK


def _attach_portable_state(trainer: Trainer) -> None:
    """Add the callback that numbers parameters in checkpoints."""
    from lightning_gluon.callbacks.portable_state import PortableState

    PortableState.attach(trainer)


def _attach_exchange(trainer: Trainer) -> None:
    """Add the callback that lets ranks send each other messages."""
    from lightning_gluon.callbacks.worker_exchange import WorkerExchange

    WorkerExchange.attach(trainer)


def _check_own(partition: object, module: nn.Module) -> None:
    """Raise if a partition holds parameters that are not the module's: another model, or one that was rebuilt since."""
    if not isinstance(partition, Partition):
        raise ValueError(
            "Expected `partition` to be what `lightning_gluon.partition` returns, but got "
            f"{type(partition).__name__}. To say roles give `rules`."
        )
    own = {id(parameter) for parameter in module.parameters()}
    foreign = [route.name for route, parameter in partition if id(parameter) not in own]
    if foreign:
        raise ValueError(
            f"Expected `partition` to be one of this module or of a part of it, but {len(foreign)} of its "
            f"{len(partition)} parameters are not the module's, such as {foreign[0]!r}. Make it from this "
            "module, as it is now."
        )


def _calibrated(lr: str, trainer: Trainer | None) -> float:
    """Let a callback find the radius, and return the learning rate it works under."""
    check_lr(lr)
    if trainer is None:
        raise ValueError(
            "`lr='auto'` adds a callback to the module's Trainer, but this module has none yet. Call this function "
            "from the LightningModule's own `configure_optimizers`, or pass a number."
        )
    from lightning_gluon.callbacks.radius_scheduler import RadiusScheduler

    RadiusScheduler.attach(trainer, options={"largest": AUTO_LARGEST})
    return AUTO_LR


def check_lr(lr: object) -> None:
    """Raise for a word that is no way to find the radius."""
    if isinstance(lr, str) and lr != AUTO:
        raise ValueError(f"Expected `lr` to be a number or 'auto', but got {lr!r}.")


def warmup_steps(warmup: int | float, total_steps: int | None) -> int:
    """Return the steps of a warmup that may be given as a share of all steps."""
    if _is_share(warmup):
        if total_steps is None or not math.isfinite(total_steps):
            raise ValueError(
                f"`warmup`={warmup} is a share of all steps, but `total_steps` is unknown. Pass `total_steps=`."
            )
        return round(warmup * total_steps)
    if not isinstance(warmup, (int, float)) or not math.isfinite(warmup) or warmup != int(warmup) or warmup < 0:
        raise ValueError(f"Expected `warmup` to be a number of steps >= 0 or a share in (0, 1), but got {warmup!r}.")
    return int(warmup)


def equivalent_learning_rates(radius: float, shape: tuple[int, int]) -> dict[str, float]:
    """Convert a hidden radius to the learning rates with which other optimizers move that matrix as far.

    With `X` of shape `(m, n) = (out, in)` a step of radius `t` is `t sqrt(m / n) U V^T`, so equal spectral size means

        muon       lr = t sqrt(m / n) / sqrt(max(1, m / n))
        scion      lr = t / 50                                  (authors' hidden radius 50)
        moonlight  lr = t sqrt(m / n) / (0.2 sqrt(max(m, n)))
        adamw      the same: Moonlight's 0.2 is AdamW's typical update RMS at lr 1

    Args:
        radius: Step length `lr * radius["hidden"]`, in units of the RMS -> RMS operator norm.
        shape: `(out, in)` of the matrix.

    Returns:
        Learning rates by optimizer, and the RMS of one update under `update_rms`.

    Raises:
        ValueError: If the shape is not that of a matrix, or the radius is no number >= 0.

    References:
        Moonlight, arXiv 2502.16982 (update RMS 0.2). Scion, arXiv 2502.07529 (radius 50).

    Example:
        >>> {name: round(lr, 4) for name, lr in equivalent_learning_rates(0.02, (3072, 768)).items()}
        {'muon': 0.02, 'scion': 0.0004, 'moonlight': 0.0036, 'adamw': 0.0036, 'update_rms': 0.0007}
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"Expected `shape` to be (out, in) of a matrix, but got {tuple(shape)}.")
    number()("radius", radius)
    m, n = shape
    spectral = radius * math.sqrt(m / n)
    update_rms = spectral * math.sqrt(min(m, n) / (m * n))
    adamw = spectral / (0.2 * math.sqrt(max(m, n)))
    return {
        "muon": spectral / math.sqrt(max(1.0, m / n)),
        "scion": radius / 50,
        "moonlight": adamw,
        "adamw": adamw,
        "update_rms": update_rms,
    }
