"""Every option of every method, once: its type and what it means; `valid` says what it may be."""

from __future__ import annotations

from typing_extensions import TypedDict

__all__ = ["Options"]


class Options(TypedDict, total=False):
    """Options of the methods; what is left out is the method's own default.

    Args:
        compile: Whether `torch.compile` makes one graph of the optimizer's step; a string is its mode.
        orthogonalizer: How the spectral LMO is computed, such as `polar_express` or `svd`.
        orthogonalizer_steps: Its iterations.
        orthogonalizer_dtype: Its dtype by name.
        momentum_dtype: Dtype of the momentum by name.
        on_nonfinite: `raise`, `skip` or `ignore`.
        noise_floor: RMS of a bias's gradient, relative to its weight's, below which it counts as rounding noise and the
            bias takes no step. `None` goes by the precision (2^-6 in bf16, 2^-9 in fp16 and fp32), 0 lets every bias step.
        start: What the momentum starts at, `gradient` or `zero`.
        scaling: Scaling of the spectral norm: `rms`, `muon`, `moonlight` or `none`.
        q: Weight on the new part of the inner recursion of `gluon-mvr2` and `gluon-mvr3`.
        gamma: Share of the correction of `mars`.
        clip: Largest norm of the corrected gradient of `mars`.
        rank: Rank of the momentum that `limuon` carries.
        oversampling: Extra columns of its sketch.
        power_iterations: Power iterations of its sketch.
        seed: Seed of its sketch.
        reference: How the previous iterate is kept: `copy`, `step` or `step8`.
        fold: Whether the second gradient is accumulated into the first one's buffer; `bfloat16` keeps it in that dtype.
        momentum_carry: Weight on the old momentum in what `lionmuon` carries.
        every: Period of the spectral steps of `lionmuon`.
        sign_radius: Radius of its sign steps, relative to the spectral one.
        betas: Both betas of `adamw`.
        eps: The epsilon of `adamw`.
    """

    compile: bool | str | None
    orthogonalizer: str | None
    orthogonalizer_steps: int | None
    orthogonalizer_dtype: str | None
    momentum_dtype: str | None
    on_nonfinite: str | None
    noise_floor: float | None
    start: str | None
    scaling: str | None
    q: float | None
    gamma: float | None
    clip: float | None
    rank: int | None
    oversampling: int | None
    power_iterations: int | None
    seed: int | None
    reference: str | None
    fold: bool | str | None
    momentum_carry: float | None
    every: int | None
    sign_radius: float | None
    betas: tuple[float, float] | None
    eps: float | None
