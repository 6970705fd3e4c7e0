"""Pictures of a monitored run: estimate against fit, L1 by depth, radii over time.

    python -m lightning_gluon.smoothness.plots smoothness RUN [--out FOLDER] [--tensorboard]

`RUN` is a run's folder, or its `smoothness.jsonl`. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gluon.roles import ROLES
from lightning_gluon.smoothness.canvas import BESIDE_AXES, log_scale, new_figure, require_matplotlib
from lightning_gluon.smoothness.depth import depth_figure
from lightning_gluon.smoothness.fit import SmoothnessFit, fit
from lightning_gluon.smoothness.samples import Samples, column, of_role, read_samples, samples_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["main", "read_samples", "require_matplotlib", "samples_in", "save", "smoothness_figures", "to_tensorboard"]

# One colour per thing, the same in all figures; told apart in grey and by the colour-blind (Okabe and Ito).
SAME, PAPER, NOISE, FIT, GREY = "#0072B2", "#E69F00", "#d5d5d5", "#000000", "#666666"
ENOUGH = 3  # samples: two values of the gradient lie on a line whatever they are
WIDTH, RING = 1.6, 2.6  # width of a line, and how far one that another would hide shows on both sides of it
SAME_PLACE = 0.02  # relative distance at which curves hide each other


def smoothness_figures(samples: Samples) -> dict[str, Figure]:
    """Draw all pictures of a run.

    Args:
        samples: What `read_samples` returned.

    Returns:
        Matplotlib figures: `smoothness_<role>` for every role, `smoothness_radii`, and `smoothness_depth` if at least
        two matrices have a fit of their own.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    roles = list(dict.fromkeys(sample["role"] for sample in samples))
    figures = {f"smoothness_{role}": _role_figure(samples, role) for role in roles}
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
        writer.add_figure(name.replace("_", "/", 1), figure, step, close=False)


# ---------------------------------------------------------------- one role


def _role_figure(samples: Samples, role: str) -> Figure:
    """Left: along training. Right: against the gradient's dual norm, where the fit is a straight line."""
    rows = of_role(samples, role)
    gradients, same = column(rows, "grad_dual_norm"), column(rows, "L_hat")
    found = _fit(same, gradients)
    figure, (along, against) = new_figure(f"{role}: smoothness along training", 2, 10.5, 4.2)
    _draw_along(along, rows, found)
    _draw_against(against, gradients, same, found)
    return figure


def _draw_along(axis: Axes, rows: Samples, found: SmoothnessFit | None) -> None:
    steps = column(rows, "step")
    paper, noise, same = (column(rows, key) for key in ("L_trajectory", "noise_only", "L_hat"))
    dots = {"marker": ".", "ms": 4, "lw": 1.2}
    # The band lies under the trajectory, which it often coincides with, and the dashes over what they fit.
    _curve(axis, steps, noise, color=NOISE, lw=6.0, label=r"only noise: $\sqrt{2}\,\|g\|_*/t$")
    _curve(axis, steps, paper, color=PAPER, label="trajectory, two minibatches (paper)", **dots)
    _curve(axis, steps, same, color=SAME, label=r"same sample $\hat L$", **dots)
    if found is not None:
        line = [found(gradient) for gradient in column(rows, "grad_dual_norm")]
        _curve(axis, steps, line, color=FIT, lw=1.4, ls=(0, (4, 2)), label=r"fit $L_0+L_1\|g\|_*$")
    log_scale(axis, [*paper, *noise, *same])
    axis.set(xlabel="step", ylabel=r"smoothness  [loss / norm$^2$]")
    axis.legend(frameon=False, fontsize=9)


def _curve(axis: Axes, steps: list[float], values: list[float], **style: Any) -> None:
    """Draw a curve with its entry in the legend, but neither if there is nothing to draw."""
    if any(math.isfinite(value) for value in values):
        axis.plot(steps, values, **style)


def _draw_against(axis: Axes, gradients: list[float], same: list[float], found: SmoothnessFit | None) -> None:
    axis.set(xlabel=r"$\|g\|_*$  [loss / norm]", ylabel=r"$\hat L$  [loss / norm$^2$]")
    if found is None:
        axis.text(0.5, 0.5, "no same-sample estimate in this run", transform=axis.transAxes, ha="center", color=GREY)
        axis.set(xticks=[], yticks=[])
        return
    axis.scatter(gradients, same, s=14, color=SAME, alpha=0.7, linewidths=0, label=r"same sample $\hat L$")
    finite = [gradient for gradient in gradients if math.isfinite(gradient)]
    ends = [min(finite), max(finite)]
    axis.plot(ends, [found(end) for end in ends], color=FIT, lw=1.4, label=_describe(found))
    axis.set_ylim(bottom=0.0)
    axis.legend(frameon=False, fontsize=9)


def _fit(values: Sequence[float], gradients: Sequence[float]) -> SmoothnessFit | None:
    pairs = zip(values, gradients, strict=True)
    if not any(math.isfinite(value) and math.isfinite(gradient) for value, gradient in pairs):
        return None
    return fit(values, gradients)


def _describe(found: SmoothnessFit) -> str:
    """Return the label of a fit: its constants, the share of the variance it explains, and its samples."""
    constants = f"fit: $L_0$ = {found.L0:.3g}, $L_1$ = {found.L1:.3g}"
    if found.samples < ENOUGH:
        return f"{constants}\ntoo few samples for $R^2$: {found.samples}"
    return f"{constants}\n$R^2$ = {found.goodness:.2f}, {found.samples} samples"


# ---------------------------------------------------------------- radii


def _radii_figure(samples: Samples, roles: Sequence[str]) -> Figure:
    """Draw the nominal step length by role, and the one that was measured."""
    figure, (axis,) = new_figure("Radii: nominal (lines) and measured (circles)", 1, 7.2, 4.2)
    rows = {role: of_role(samples, role) for role in roles}
    curves = {role: column(rows[role], "radius") for role in roles}
    values: list[float] = []
    for index, role in enumerate(roles):
        steps, lengths = column(rows[role], "step"), column(rows[role], "update_norm")
        covers = sum(_coincide(curves[role], curves[other]) for other in roles[index + 1 :])
        known = ROLES.get(role)
        colour = known.colour if known else GREY
        alone = "_" if len(steps) == 1 else None
        axis.plot(steps, curves[role], color=colour, lw=WIDTH + RING * covers, marker=alone, label=role, zorder=2)
        last = [step - 1 for step in steps]  # the length that was measured is that of the step before
        axis.plot(last, lengths, color=colour, lw=0, marker="o", ms=3.5, mfc="white", mew=0.9, zorder=3)
        values += [*curves[role], *lengths]
    log_scale(axis, values)
    axis.set(xlabel="step", ylabel="step length  [norm]")
    axis.legend(frameon=False, fontsize=9, **BESIDE_AXES)
    return figure


def _coincide(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether one curve would be hidden by another that is drawn later."""
    if len(one) != len(other):
        return False
    return all(math.isclose(a, b, rel_tol=SAME_PLACE) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures of a run from the command line.

    Args:
        arguments: Command line; default: the program's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lightning_gluon.smoothness.plots", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("smoothness", help="estimate against fit, L1 by depth, radii")
    command.add_argument("run", type=Path, help="folder of a run, or its smoothness.jsonl")
    command.add_argument("--out", type=Path, default=None, help="folder for the PNG files; default: the run's")
    command.add_argument(
        "--tensorboard", action="store_true", help="add the figures to TensorBoard, in the same folder"
    )
    given = parser.parse_args(arguments)
    try:
        samples = read_samples(given.run)
    except (FileNotFoundError, ValueError) as error:
        command.error(str(error))
    figures = smoothness_figures(samples)
    folder = given.out or (given.run if given.run.is_dir() else given.run.parent)
    for path in save(figures, folder):
        print(path)
    if given.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            to_tensorboard(figures, writer, samples[-1]["step"])


if __name__ == "__main__":
    main()
