"""Pictures of a monitored run: estimate against fit, L1 by depth, radii over time.

    lightning-gluon plot RUN

Needs matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gluon.smoothness.canvas import BESIDE_AXES, GREY, colour_of, log_scale, new_figure, require_matplotlib
from lightning_gluon.smoothness.depth import depth_figure
from lightning_gluon.smoothness.fit import SmoothnessFit, fit
from lightning_gluon.smoothness.samples import Samples, read_samples, role_samples, samples_in, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["read_samples", "require_matplotlib", "samples_in", "save", "smoothness_figures", "to_tensorboard"]

# One colour per thing, the same in all figures; told apart in grey and by the colour-blind (Okabe and Ito).
SAME, PAPER, NOISE, FIT = "#0072B2", "#E69F00", "#d5d5d5", "#000000"
ENOUGH = 3  # samples: two values of the gradient lie on a line whatever they are
WIDTH, RING = 1.6, 2.6  # width of a line, and how far one that another would hide shows on both sides of it
SAME_PLACE = 0.02  # relative distance at which curves hide each other


@dataclass(frozen=True)
class Curve:
    """One estimate along training: its reading, and its style in the words of matplotlib."""

    key: str
    style: dict[str, Any]


# In this order the band lies under the trajectory, which it often coincides with, and the dashes over what they fit.
CURVES = (
    Curve(
        "noise_only",
        {"color": NOISE, "lw": 6.0, "label": r"only noise: $\sqrt{2}\,\|g\|_*/t$"},
    ),
    Curve(
        "L_trajectory",
        {"color": PAPER, "lw": 1.2, "marker": ".", "ms": 4, "label": "trajectory, two minibatches (paper)"},
    ),
    Curve(
        "L_hat",
        {"color": SAME, "lw": 1.2, "marker": ".", "ms": 4, "label": r"same sample $\hat L$"},
    ),
)
FIT_LINE: dict[str, Any] = {"color": FIT, "lw": 1.4, "ls": (0, (4, 2)), "label": r"fit $L_0+L_1\|g\|_*$"}


def smoothness_figures(samples: Samples) -> dict[str, Figure]:
    """Draw all pictures of a run.

    Args:
        samples: Result of `read_samples`.

    Returns:
        Matplotlib figures: `smoothness_<role>` for every role, `smoothness_radii`, and `smoothness_depth` if at least
        two matrices have a fit of their own.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    roles = list(dict.fromkeys(sample["role"] for sample in samples))
    figures = {}
    for role in roles:
        figures[f"smoothness_{role}"] = _role_figure(samples, role)
    depth = depth_figure(samples)
    if depth is not None:
        figures["smoothness_depth"] = depth
    figures["smoothness_radii"] = _radii_figure(samples, roles)
    return figures


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures as PNG files and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        paths.append(path)
    return paths


def to_tensorboard(figures: Mapping[str, Figure], writer: Any, step: int) -> None:
    """Add figures to a TensorBoard writer under their names."""
    for name, figure in figures.items():
        tag = name.replace("_", "/", 1)
        writer.add_figure(tag, figure, step, close=False)


# ---------------------------------------------------------------- one role


def _role_figure(samples: Samples, role: str) -> Figure:
    """Left: along training. Right: against the gradient's dual norm, where the fit is a straight line."""
    rows = role_samples(samples, role)
    gradients = series(rows, "grad_dual_norm")
    same = series(rows, "L_hat")
    found = _fit_of_role(same, gradients)
    title = f"{role}: smoothness along training"
    figure, (along, against) = new_figure(title, 2, 10.5, 4.2)
    _draw_along(along, rows, found)
    _draw_against(against, gradients, same, found)
    return figure


def _draw_along(axis: Axes, rows: Samples, found: SmoothnessFit | None) -> None:
    steps = series(rows, "step")
    values: list[float] = []
    for curve in CURVES:
        heights = series(rows, curve.key)
        values += heights
        if any(math.isfinite(height) for height in heights):  # else it has no place in the legend either
            axis.plot(steps, heights, **curve.style)
    if found is not None:
        gradients = series(rows, "grad_dual_norm")
        line = [found(gradient) for gradient in gradients]
        axis.plot(steps, line, **FIT_LINE)
    log_scale(axis, values)
    axis.set(xlabel="step", ylabel=r"smoothness  [loss / norm$^2$]")
    axis.legend(frameon=False, fontsize=9)


def _draw_against(axis: Axes, gradients: list[float], same: list[float], found: SmoothnessFit | None) -> None:
    axis.set(xlabel=r"$\|g\|_*$  [loss / norm]", ylabel=r"$\hat L$  [loss / norm$^2$]")
    if found is None:
        whole = axis.transAxes
        axis.text(0.5, 0.5, "no same-sample estimate in this run", transform=whole, ha="center", color=GREY)
        axis.set(xticks=[], yticks=[])
        return
    axis.scatter(
        gradients,
        same,
        s=14,
        color=SAME,
        alpha=0.7,
        linewidths=0,
        label=r"same sample $\hat L$",
    )
    finite = [gradient for gradient in gradients if math.isfinite(gradient)]
    ends = [min(finite), max(finite)]
    heights = [found(end) for end in ends]
    axis.plot(ends, heights, color=FIT, lw=1.4, label=_fit_label(found))
    axis.set_ylim(bottom=0.0)
    axis.legend(frameon=False, fontsize=9)


def _fit_of_role(values: Sequence[float], gradients: Sequence[float]) -> SmoothnessFit | None:
    pairs = zip(values, gradients, strict=True)
    for value, gradient in pairs:
        if math.isfinite(value) and math.isfinite(gradient):
            return fit(values, gradients)
    return None


def _fit_label(found: SmoothnessFit) -> str:
    """Return the label of a fit: its constants, the share of the variance it explains, and its samples."""
    samples = found.samples
    quality = f"$R^2$ = {found.goodness:.2f}, {samples} samples"
    if samples < ENOUGH:
        quality = f"too few samples for $R^2$: {samples}"
    constants = f"fit: $L_0$ = {found.L0:.3g}, $L_1$ = {found.L1:.3g}"
    return f"{constants}\n{quality}"


# ---------------------------------------------------------------- radii


def _radii_figure(samples: Samples, roles: Sequence[str]) -> Figure:
    """Draw the nominal step length by role, and the one that was measured."""
    figure, (axis,) = new_figure("Radii: nominal (lines) and measured (circles)", 1, 7.2, 4.2)
    nominal: list[list[float]] = []  # of the roles drawn so far, the last first: they lie above
    values: list[float] = []
    for role in reversed(roles):
        rows = role_samples(samples, role)
        radii = series(rows, "radius")
        lengths = series(rows, "update_norm")
        covers = sum(_coincide(radii, other) for other in nominal)
        _draw_radii(axis, role, series(rows, "step"), radii, covers)
        _draw_lengths(axis, role, series(rows, "step"), lengths)
        nominal.append(radii)
        values += radii
        values += lengths
    log_scale(axis, values)
    axis.set(xlabel="step", ylabel="step length  [norm]")
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9, **BESIDE_AXES)
    return figure


def _draw_radii(axis: Axes, role: str, steps: list[float], radii: list[float], covers: int) -> None:
    """Draw a line, wider by one ring for every curve that would hide it."""
    axis.plot(
        steps,
        radii,
        color=colour_of(role),
        lw=WIDTH + RING * covers,
        marker="_" if len(steps) == 1 else None,
        label=role,
        zorder=3 - covers / 10,
    )


def _draw_lengths(axis: Axes, role: str, steps: list[float], lengths: list[float]) -> None:
    before = [step - 1 for step in steps]  # the length that was measured is that of the step before
    axis.plot(
        before,
        lengths,
        color=colour_of(role),
        lw=0,
        marker="o",
        ms=3.5,
        mfc="white",
        mew=0.9,
        zorder=4,
    )


def _coincide(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two curves hide each other."""
    if len(one) != len(other):
        return False
    pairs = zip(one, other, strict=True)
    return all(math.isclose(a, b, rel_tol=SAME_PLACE) for a, b in pairs)
