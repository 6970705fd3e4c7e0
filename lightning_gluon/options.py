"""Every option of every method, once: its type, its check, and its meaning.

An option is one line of `Options` (its type and its check) and one line of that class' docstring, which command lines
show as help. What it is by default stands with the recursion or norm that reads it. Rows from outside the package add
theirs by `register_option`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeAlias, get_type_hints

from typing_extensions import TypedDict

from lightning_gluon.valid import Check, dtype_name, number, one_of, pair_of, text, whole

__all__ = ["CHECKS", "SETTINGS", "Group", "Options", "register_option"]

MaybeText: TypeAlias = str | None
TextPerRole: TypeAlias = str | Mapping[str, str] | None
MaybeNumber: TypeAlias = float | None
MaybeWhole: TypeAlias = int | None
MaybePair: TypeAlias = tuple[float, float] | None

FRACTION = number(0, 1)
WHOLE_SHARE = number(0, 1, signs="<= <=")
POSITIVE = number(0)
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of `torch.compile`

# One parameter group, complete: plain values by name, `params` next to them.
Group: TypeAlias = dict[str, Any]


class Options(TypedDict, total=False):
    """Options of the methods; one that is left out is the method's own default.

    Args:
        compile: Whether `torch.compile` makes one graph of the optimizer's step; a string is its mode.
        orthogonalizer: How the spectral LMO is computed, such as `polar_express` or `svd`.
        orthogonalizer_steps: Its iterations. Relative to 6 Polar Express steps 5 cost 0.83 to 0.9 and miss up to 3 % of
            the decrease; 4 cost 0.67 and miss up to 8 %. In bfloat16 keep 6.
        orthogonalizer_dtype: Its dtype by name.
        momentum_dtype: Dtype of the momentum by name; `int8` keeps what is no vector in 8 bits and a scale per block.
        on_nonfinite: `raise`, `skip` or `ignore`.
        noise_floor: RMS of a bias's gradient, relative to its weight's, below which it counts as rounding noise and the
            bias takes no step. `None` goes by the precision, 0 lets every bias step.
        start: What the momentum starts at, `gradient` or `zero`.
        scaling: Scaling of the spectral norm: `rms`, `muon`, `moonlight` or `none`.
        q: Weight on the new part of the inner recursion of `gluon-mvr2` and `gluon-mvr3`.
        gamma: Share of the correction by the second gradient, in `gluon-mvr1` to `3`, `muon-mvr`, `limuon` and `mars`.
            1 is that of the papers but for `mars`; 0 takes no second gradient. `auto` estimates it from its noise.
        clip: Largest norm of the corrected gradient of `mars`.
        rank: Rank of the momentum that `limuon` and `gluon-lowrank` carry.
        factor_dtype: Dtype, by name, of the factors that carry it.
        feedback: Bits in which the rest, which they leave out, is kept for the next step: `int8`, `int4` or None.
        oversampling: Extra columns of its sketch.
        power_iterations: Power iterations of its sketch.
        seed: Seed of its sketch.
        reference: How the previous iterate is kept: `copy`, `step` or `step8`.
        fold: Whether the second gradient is accumulated into the first one's buffer; `bfloat16` keeps it in that dtype.
        lookahead: Share of the way to the point where the gradient of `gluon-igt`, `gluon-lookahead`,
            `gluon-ema-nesterov` and `gluon-anchor` is taken; at 0 it is taken at the weights.
        average_age: Mean age of the average step of `gluon-ema-nesterov`, and of the average weights of `gluon-anchor`,
            as a share of the training.
        ramp: Share of the training at its end over which the lookahead of `gluon-anchor` grows from 0.
        kernel_before: Momentum of `gluon-dual` and `muon-dual` up to the switch: `ema` or `nesterov`.
        kernel_start: Weight of the newest gradient, and mean age as a share of the training, at the switch.
        kernel_end: The same at the end.
        switch: Share of the training after which the memory of `gluon-dual`, `muon-dual` and `gluon-mix` shrinks.
        mix: Averages of `gluon-mix`.
        mix_ages: Ages of the youngest and of the oldest one, as shares of the training.
        mix_weights: Weight of the oldest one at the switch and at the end.
        momentum_carry: Weight on the old momentum in what `lionmuon` carries.
        every: Period of the spectral steps of `lionmuon`.
        sign_radius: Radius of its sign steps, relative to the spectral one.
        equilibrate: What is scaled to equal lengths before a spectral LMO: `rows`, `columns`, `both` or `aurora`. One
            value, or one per role. If `rules` give some parameters the norm `balanced`, it is for these alone.
        balance: What gets equal lengths after a spectral LMO, by running means: `rows`, `columns` or the `longer` side.
            It is for whatever `equilibrate` would be for.
        balance_momentum: Weight on the old mean of `balance`.
        gate: Norm of a momentum below which it is the step itself, as it is; `mimuon` asks for it, 0 is `muon`.
        gate_form: What `gate` bounds: the Frobenius `norm`, or the smallest `gap` of two singular values.
        row_scaling: Length of the rows of norms of rows: RMS 1 (`rms`), that of `sign`, or 1 (`none`).
        row_clip: Largest entry of a row of `clipped_row`, relative to its RMS; 1 is the norm `sign`.
        retract: Where matrices are brought back to after a step: `sphere` keeps the Frobenius norms they start with,
            `brake` halves the part of the step that makes them longer.
        damping: Share of the first factor's size that is added to the other one's before its inverse is taken, in the
            steps of low-rank adapters.
        compressor: Compressor of the messages of `ef21-muon` and its relatives: `identity`, `bf16`, `natural`, `top-k`,
            `random-k` or `rank-r`.
        compressor_share: Share of the entries that `top-k` and `random-k` send.
        compressor_rank: Rank of what `rank-r` sends.
        workers: Workers that exchange these messages.
        sarah_restart: Steps from one restart of `ef21-sarah-reading` to the next.
        betas: Both betas of `adamw`.
        eps: The epsilon of `adamw`.

    Example:
        >>> options: Options = {"rank": 8, "reference": "step8"}
        >>> CHECKS["rank"]("rank", options["rank"])
        8
    """

    compile: Annotated[bool | str | None, one_of(True, False, None, *MODES)]
    orthogonalizer: Annotated[MaybeText, one_of("polar_express", "you", "jordan", "newton_schulz", "svd")]
    orthogonalizer_steps: Annotated[MaybeWhole, whole(1, none="the default")]
    orthogonalizer_dtype: Annotated[MaybeText, dtype_name("bfloat16", "float16", "float32", "float64")]
    momentum_dtype: Annotated[MaybeText, dtype_name(codes=["int8"])]
    on_nonfinite: Annotated[MaybeText, one_of("raise", "skip", "ignore")]
    noise_floor: Annotated[MaybeNumber, number(0, 1, none=True)]
    start: Annotated[MaybeText, one_of("gradient", "zero")]
    scaling: Annotated[MaybeText, one_of("rms", "muon", "moonlight", "none", None)]
    q: Annotated[MaybeNumber, number(0, 1, signs="< <=")]
    gamma: Annotated[float | str | None, number(0, word="auto")]
    clip: Annotated[MaybeNumber, number(none=True)]
    rank: Annotated[MaybeWhole, whole(1, none="the full carry")]
    factor_dtype: Annotated[MaybeText, dtype_name()]
    feedback: Annotated[MaybeText, one_of("int8", "int4", None)]
    oversampling: Annotated[MaybeWhole, whole()]
    power_iterations: Annotated[MaybeWhole, whole()]
    seed: Annotated[MaybeWhole, whole(-(2**63))]
    reference: Annotated[MaybeText, one_of("copy", "step", "step8")]
    fold: Annotated[bool | str | None, one_of(False, True, "bfloat16")]
    lookahead: Annotated[MaybeNumber, WHOLE_SHARE]
    average_age: Annotated[MaybeNumber, WHOLE_SHARE]
    ramp: Annotated[MaybeNumber, WHOLE_SHARE]
    kernel_before: Annotated[MaybeText, one_of("ema", "nesterov")]
    kernel_start: Annotated[MaybePair, pair_of(WHOLE_SHARE)]
    kernel_end: Annotated[MaybePair, pair_of(WHOLE_SHARE)]
    switch: Annotated[MaybeNumber, WHOLE_SHARE]
    mix: Annotated[MaybeWhole, whole(2, most=8)]
    mix_ages: Annotated[MaybePair, pair_of(number(0, 1, signs="< <="))]
    mix_weights: Annotated[MaybePair, pair_of(WHOLE_SHARE)]
    momentum_carry: Annotated[MaybeNumber, FRACTION]
    every: Annotated[MaybeWhole, whole(1, unit=" of steps")]
    sign_radius: Annotated[MaybeNumber, POSITIVE]
    equilibrate: Annotated[TextPerRole, one_of(None, "rows", "columns", "both", "aurora")]
    balance: Annotated[TextPerRole, one_of(None, "rows", "columns", "longer")]
    balance_momentum: Annotated[MaybeNumber, FRACTION]
    gate: Annotated[MaybeNumber, number(0, none=True)]
    gate_form: Annotated[MaybeText, one_of("norm", "gap")]
    row_scaling: Annotated[MaybeText, one_of("rms", "sign", "none")]
    row_clip: Annotated[MaybeNumber, number(1)]
    retract: Annotated[MaybeText, text(none=True)]
    damping: Annotated[MaybeNumber, number()]
    compressor: Annotated[MaybeText, one_of("identity", "bf16", "natural", "top-k", "random-k", "rank-r")]
    compressor_share: Annotated[MaybeNumber, number(0, 1, signs="< <=")]
    compressor_rank: Annotated[MaybeWhole, whole(1)]
    workers: Annotated[MaybeWhole, whole(1)]
    sarah_restart: Annotated[MaybeWhole, whole(1, unit=" of steps")]
    betas: Annotated[MaybePair, pair_of(FRACTION)]
    eps: Annotated[MaybeNumber, POSITIVE]


# The numbers of every group, which schedules may change from step to step.
SETTINGS: dict[str, Check] = {
    "lr": POSITIVE,
    "momentum": FRACTION,
    "weight_decay": POSITIVE,
    "radius": POSITIVE,
}


def _checks() -> dict[str, Check]:
    """Return the check of every option, and leave plain types behind: command lines print them."""
    hints = get_type_hints(Options, include_extras=True)
    Options.__annotations__.update(get_type_hints(Options))
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


CHECKS: dict[str, Check] = _checks()


def register_option(name: str, type_: object, check: Check, summary: str) -> None:
    """Add an option that a norm or an estimator from outside the package reads.

    Shapes: a plain value, never a tensor: groups are saved in checkpoints.

    Args:
        name: Its name, a Python identifier.
        type_: Its type, such as `float | None`.
        check: What it may be, such as `lightning_gluon.valid.number(0, 1)`.
        summary: One line for people.

    Raises:
        ValueError: If the name is taken or is no identifier.

    Example:
        >>> from lightning_gluon.valid import number
        >>> register_option("sharpness", float | None, number(0), "Sharpness of `my_norm`.")
        >>> CHECKS["sharpness"]("sharpness", 0.5)
        0.5
        >>> unregister_option("sharpness")
    """
    if not name.isidentifier() or name in CHECKS or name in SETTINGS:
        taken = "is taken" if name.isidentifier() else "is no Python identifier"
        raise ValueError(f"Expected the name of a new option, but {name!r} {taken}. Choose another name.")
    CHECKS[name] = check
    Options.__annotations__[name] = type_
    start, example, rest = (Options.__doc__ or "").partition("\n\n    Example:")
    Options.__doc__ = f"{start}\n        {name}: {summary}{example}{rest}"


def check_registered(reader: str, options: Iterable[str]) -> None:
    """Raise unless every option that a row reads has a check.

    Args:
        reader: The row, for the error, such as `Norm 'balanced'`.
        options: Names of its options.

    Raises:
        ValueError: If an option is in no table.
    """
    unknown = [option for option in options if option not in CHECKS]
    if unknown:
        raise ValueError(
            f"{reader} reads options that nobody checks: {', '.join(unknown)}. Register each of them before by "
            "`lightning_gluon.register_option`."
        )


def unregister_option(name: str) -> None:
    """Forget an option that `register_option` added."""
    del CHECKS[name]
    del Options.__annotations__[name]
    lines = (Options.__doc__ or "").splitlines()
    Options.__doc__ = "\n".join(line for line in lines if not line.startswith(f"        {name}: "))
