"""Pictures of a monitored run: estimate against fit, L1 by depth, radii over time.

    python -m lightning_gluon.smoothness.plots smoothness RUN [--out FOLDER] [--tensorboard]

`RUN` is a run's folder, or its `smoothness.jsonl`. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_gluon.extras import require
from lightning_gluon.smoothness.fit import fit

__all__ = [
    "main",
    "read_samples",
    "require_matplotlib",
    "samples_in",
    "save",
    "smoothness_figures",
    "to_tensorboard",
]

Samples = list[dict[str, Any]]

# One colour per thing, the same in all figures; told apart in grey and by the colour-blind (Okabe and Ito).
SAME, PAPER, NOISE, FIT, GREY = "#0072B2", "#E69F00", "#999999", "#000000", "#666666"
ROLE_COLOURS = {
    "hidden": "#0072B2",
    "input": "#D55E00",
    "embedding": "#E69F00",
    "head": "#009E73",
    "bias": "#CC79A7",
    "elementwise": "#56B4E9",
}
DASHES = {"head": (0, (5, 2)), "bias": (0, (1, 1)), "elementwise": (0, (5, 1, 1, 1))}  # roles that often coincide
VECTORS = ("bias", "elementwise")  # too many for the picture of depths
MARKERS = "os^Dv<>PX*"


def read_samples(path: str | Path) -> Samples:
    """Return the samples of a run, ordered by step; the file may lie in a subfolder of the path.

    Args:
        path: A file written by `SmoothnessMonitor`, or a folder with one; of several the newest.

    Returns:
        One dict per line.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file has no samples.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.rglob("smoothness*.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(
            f"Expected `smoothness.jsonl` in {str(path)!r}, but there is none. Train with `SmoothnessMonitor`."
        )
    samples = samples_in(files[-1])
    if not samples:
        raise ValueError(f"{str(files[-1])!r} has no samples yet.")
    return sorted(samples, key=lambda sample: sample["step"])


def samples_in(file: Path) -> Samples:
    """Return the samples of a file in its own order; lines that a crash has cut off are passed over."""
    samples = []
    for line in file.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            sample = json.loads(line)
            if isinstance(sample, dict) and sample.keys() >= {"step", "role", "layer"}:
                samples.append(sample)
    return samples


def smoothness_figures(samples: Samples) -> dict[str, Any]:
    """Draw all pictures of a run.

    Args:
        samples: What `read_samples` returned.

    Returns:
        Matplotlib figures: `smoothness_<role>` for every role, `smoothness_depth` and `smoothness_radii`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    roles = list(dict.fromkeys(sample["role"] for sample in samples))
    figures = {f"smoothness_{role}": _role_figure(samples, role) for role in roles}
    return figures | {"smoothness_depth": _depth_figure(samples), "smoothness_radii": _radii_figure(samples, roles)}


def save(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write figures as PNG files and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return paths


def to_tensorboard(figures: Mapping[str, Any], writer: Any, step: int) -> None:
    """Add figures to a TensorBoard writer under their names."""
    for name, figure in figures.items():
        writer.add_figure(name.replace("_", "/", 1), figure, step, close=False)


def require_matplotlib() -> None:
    """Raise an `ImportError` where matplotlib is not installed: better before a training than at its end."""
    require("matplotlib.figure")


def _figure(columns: int = 1, width: float = 6.4, height: float = 4.0) -> tuple[Any, list[Any]]:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _column(samples: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [math.nan if sample.get(key) is None else sample[key] for sample in samples]


def _role_figure(samples: Samples, role: str) -> Any:
    """Left: along training. Right: against the gradient's dual norm, where the fit is a straight line."""
    whole = [sample for sample in samples if sample["role"] == role and sample["layer"] is None]
    steps, gradients = _column(whole, "step"), _column(whole, "grad_dual_norm")
    same, paper = _column(whole, "L_hat"), _column(whole, "L_trajectory")
    figure, (along, against) = _figure(2, 10.5, 4.2)
    along.plot(steps, paper, color=PAPER, lw=1.2, marker=".", ms=4, label="trajectory, two minibatches (paper)")
    along.plot(
        steps, _column(whole, "noise_only"), color=NOISE, lw=1.2, ls="--", label=r"noise floor $\sqrt{2}\,\|g\|_*/t$"
    )
    along.plot(steps, same, color=SAME, lw=1.2, marker=".", ms=4, label=r"same sample $\hat L$")
    found = _fit(same, gradients)
    if found is not None:
        line = [found(gradient) for gradient in gradients]
        along.plot(steps, line, color=FIT, lw=1.4, label=r"fit $L_0+L_1\|g\|_*$")
        low, high = min(gradients), max(gradients)
        against.scatter(gradients, same, s=14, color=SAME, alpha=0.7, linewidths=0, label=r"same sample $\hat L$")
        label = f"$L_0$ = {found.L0:.3g}, $L_1$ = {found.L1:.3g}"
        against.plot([low, high], [found(low), found(high)], color=FIT, lw=1.4, label=label)
        against.legend(frameon=False, fontsize=9)
    along.set(xlabel="step", ylabel=r"smoothness  [loss / norm$^2$]", yscale="log")
    against.set(xlabel=r"$\|g\|_*$  [loss / norm]", ylabel=r"$\hat L$  [loss / norm$^2$]")
    along.legend(frameon=False, fontsize=9)
    figure.suptitle(f"{role}: smoothness along training", x=0.01, ha="left", fontweight="bold")
    return figure


def _fit(values: Sequence[float], gradients: Sequence[float]) -> Any:
    pairs = [(v, g) for v, g in zip(values, gradients, strict=True) if math.isfinite(v) and math.isfinite(g)]
    return fit([value for value, _ in pairs], [gradient for _, gradient in pairs]) if pairs else None


def _depth_figure(samples: Samples) -> Any:
    """L1 of the latest fit of every matrix, by the block it stands in; those outside blocks stand on the right."""
    matrices = (sample for sample in samples if sample["role"] not in VECTORS and sample["layer"] is not None)
    fits = {sample["layer"]: sample for sample in matrices if sample["L1"] is not None}
    last = {name: sample for name, sample in fits.items() if sample["L1"] > 0}  # the axis has no zero
    blocks, outside = _by_kind(last)
    figure, (axis,) = _figure(1, 8.0, 4.4)
    for index, (kind, points) in enumerate(sorted(blocks.items())):
        depths, values = zip(*sorted(points), strict=True)
        marker = MARKERS[index % len(MARKERS)]
        colour = _shades(len(blocks))[index]
        axis.plot(depths, values, marker=marker, ms=5, lw=1.2, color=colour, label=kind)
    deepest = max((depth for points in blocks.values() for depth, _ in points), default=-1)
    apart = 1 + max(0, deepest) // 12  # names are wider than numbers
    places = [deepest + apart * (1 + index) for index in range(len(outside))]
    for place, (_, sample) in zip(places, outside, strict=True):
        axis.plot([place], [sample["L1"]], marker="o", ms=6, color=ROLE_COLOURS.get(sample["role"], GREY))
    numbers = range(0, deepest + 1, 1 + max(0, deepest) // 24)
    axis.set_xticks([*numbers, *places], [*map(str, numbers), *(name for name, _ in outside)])
    for text in axis.get_xticklabels()[len(numbers) :]:
        text.set(rotation=20 if len(outside) < 8 else 60, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set(xlabel="block, then layers outside blocks", ylabel=r"$L_1$  [1 / norm]")
    if last:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(_plain_numbers())
        axis.yaxis.set_minor_formatter(_plain_numbers(minor_thresholds=(2, 0.4)))
    if blocks:
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    zeros = f"; {len(fits) - len(last)} of {len(fits)} matrices are at 0" if len(last) < len(fits) else ""
    figure.suptitle(f"Smoothness constant by depth (latest fit{zeros})", x=0.01, ha="left", fontweight="bold")
    return figure


def _by_kind(last: Mapping[str, dict[str, Any]]) -> tuple[dict[str, list[tuple[int, float]]], list[tuple[str, Any]]]:
    """Split layer names such as `blocks.3.mlp.fc1.weight` into a depth and a kind, by place if there are several."""
    found, outside = [], []
    for name, sample in last.items():
        parts = re.fullmatch(r"(?:(.+?)\.)?(\d+)\.(.+)", name)
        if parts:
            found.append((parts[1] or "", re.sub(r"(^|\.)weight$", "", parts[3]), int(parts[2]), sample["L1"]))
        else:
            outside.append((".".join(name.removesuffix(".weight").split(".")[-2:]), sample))
    several = len({place for place, *_ in found}) > 1
    blocks: dict[str, list[tuple[int, float]]] = {}
    for place, kind, depth, value in found:
        name = f"{place}.{kind}".strip(".") if several or not kind else kind
        blocks.setdefault(name, []).append((depth, value))
    return blocks, outside


def _plain_numbers(**options: Any) -> Any:
    """A formatter of logarithmic axes that writes 60 and 0.6, not 6 x 10^1 and 6e-01."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain(**options)


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * index / max(1, count - 1)) for index in range(count)]


def _radii_figure(samples: Samples, roles: Sequence[str]) -> Any:
    """Nominal step length, and the one measured, by role."""
    figure, (axis,) = _figure(1, 7.2, 4.2)
    for role in roles:
        whole = [sample for sample in samples if sample["role"] == role and sample["layer"] is None]
        steps, colour = _column(whole, "step"), ROLE_COLOURS.get(role, GREY)
        axis.plot(steps, _column(whole, "radius"), color=colour, lw=1.8, ls=DASHES.get(role, "-"), label=role)
        last = [step - 1 for step in steps]  # what was measured is the step before
        axis.plot(last, _column(whole, "update_norm"), color=colour, lw=0, marker=".", ms=4, alpha=0.8)
    axis.set(xlabel="step", ylabel="step length  [norm]", yscale="log")
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle("Radii: nominal (lines) and measured (dots)", x=0.01, ha="left", fontweight="bold")
    return figure


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
