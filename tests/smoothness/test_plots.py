"""The pictures of a run, as their lines and labels, and the command that draws them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_gluon.__main__ import main
from lightning_gluon.smoothness import plots
from lightning_gluon.smoothness.readings import FIT_KEYS, READINGS


def row(step: int = 0, layer: str | None = None, **values) -> dict:
    readings = dict.fromkeys((*READINGS, *FIT_KEYS), 2.0)
    return {**readings, "role": "hidden", "radius": 0.02, "step": step, "layer": layer, **values}


def curves(axis) -> dict:
    return {line.get_label(): line for line in axis.lines}


def legend(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def hidden_axes(rows: list[dict]):
    return plots.smoothness_figures(rows)["smoothness_hidden"].axes


def test_command_line_draws_a_run(tmp_path, capsys):
    rows = [
        row(step, layer, L_hat=1.0 + step, grad_dual_norm=1.0 + step)
        for step in range(3)
        for layer in (None, "blocks.0.fc.weight", "blocks.1.fc.weight")
    ]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "smoothness.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    main(["plot", str(tmp_path), "--out", str(tmp_path / "out"), "--tensorboard"])
    printed = capsys.readouterr().out.split()
    names = ["smoothness_depth.png", "smoothness_hidden.png", "smoothness_radii.png"]
    assert sorted(Path(path).name for path in printed) == names
    assert all(Path(path).read_bytes()[:4] == b"\x89PNG" for path in printed)


def test_command_line_names_what_is_missing(tmp_path):
    (tmp_path / "smoothness.jsonl").write_text('\n{"step"')
    for path, message in ((tmp_path, "has no samples yet"), (tmp_path / "nowhere", "there is none. Train with")):
        with pytest.raises(SystemExit, match=message):
            main(["plot", str(path)])


def test_a_fit_says_how_good_it_is_and_on_how_many_samples():
    gradients = [1.0, 2.0, 3.0, 4.0]
    _, against = hidden_axes([row(k, L_hat=1 + 2 * g, grad_dual_norm=g) for k, g in enumerate(gradients)])
    assert "$L_0$ = 1, $L_1$ = 2\n$R^2$ = 1.00, 4 samples" in legend(against)[1]
    _, few = hidden_axes([row(k, L_hat=g, grad_dual_norm=g) for k, g in enumerate(gradients[:2])])
    assert "too few samples for $R^2$: 2" in legend(few)[1]  # a line goes through any two points


def test_a_run_without_same_sample_estimates_says_so():
    along, against = hidden_axes([row(k, L_hat=None) for k in range(3)])
    assert not any("same sample" in label or "fit" in label for label in legend(along))
    assert [text.get_text() for text in against.texts] == ["no same-sample estimate in this run"]


def test_a_gap_in_the_samples_is_a_gap_in_the_curve():
    along, _ = hidden_axes([row(k, L_hat=None if k == 2 else 1.0 + k) for k in range(5)])
    same = curves(along)[r"same sample $\hat L$"]
    assert [math.isnan(y) for y in same.get_ydata()] == [False, False, True, False, False]


def test_no_curve_hides_another():
    # In the role's picture noise and trajectory coincide as a rule, and a good fit lies on what it fits.
    along, _ = hidden_axes([row(k) for k in range(4)])
    noise, paper, same, fitted = along.lines
    assert noise.get_linewidth() > 2 * paper.get_linewidth()
    assert fitted.get_linestyle() == "--"
    assert same.get_linestyle() == "-"
    # Radii that coincide lie on each other like rings; one that stands apart is as thin as the last.
    apart = {"head": 0.5}
    roles = ("hidden", "input", "head", "bias")
    rows = [row(k, role=role, radius=apart.get(role, 0.02)) for k in range(3) for role in roles]
    axis = plots.smoothness_figures(rows)["smoothness_radii"].axes[0]
    widths = {role: curves(axis)[role].get_linewidth() for role in roles}
    assert widths["hidden"] > widths["input"] > widths["bias"] == widths["head"]


def test_a_single_sample_is_seen():
    axis = plots.smoothness_figures([row()])["smoothness_radii"].axes[0]
    assert curves(axis)["hidden"].get_marker() == "_"


def test_a_role_of_another_version_is_drawn_in_grey():
    axis = plots.smoothness_figures([row(k, role="unheard") for k in range(2)])["smoothness_radii"].axes[0]
    assert curves(axis)["unheard"].get_color() == plots.GREY


def test_matplotlib_is_imported_late():
    code = "import sys, lightning_gluon.smoothness.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
