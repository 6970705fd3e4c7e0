"""The picture of L1 by depth, as its lines and labels."""

from __future__ import annotations

import math
from itertools import pairwise

from lightning_gluon.smoothness.depth import depth_figure


def drawn(values: dict[str, float], role: str = "hidden"):
    """Draw L1 by layer name; the same for all steps, but 9 at the first."""
    samples = []
    for step in range(2):
        for name, value in values.items():
            samples.append({"role": role, "step": step, "layer": name, "L1": value if step else 9.0})
    figure = depth_figure([*samples, {"role": role, "step": 1, "layer": None, "L1": 5.0}])
    if figure is None:
        return None
    figure.canvas.draw()
    return figure.axes[0]


def points(line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if not math.isnan(y)]


def test_small_constants_are_written_out():
    axis = drawn({f"blocks.{k}.fc.weight": 0.25 * (k + 1) for k in range(3)})
    labels = [text.get_text() for text in axis.get_yticklabels(which="both")]
    assert "0.3" in labels
    assert not any("e" in label or "^" in label for label in labels)


def test_blocks_in_several_places_are_lines_of_their_own():
    names = [f"layer{stage}.{block}.conv.weight" for stage in (1, 2) for block in (0, 1)]
    axis = drawn({**dict.fromkeys(names, 1.0), "net.0.weight": 1.0, "fc.weight": 1.0})
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["layer1.conv", "layer2.conv", "net"]
    assert [list(line.get_xdata()) for line in axis.lines] == [[0, 1], [0, 1], [0], [2]]


def test_labels_of_deep_networks_do_not_overlap():
    axis = drawn({**{f"blocks.{k}.fc.weight": 1.0 for k in range(64)}, "tok_embeddings.weight": 1.0, "head": 1.0})
    boxes = [text.get_window_extent() for text in axis.get_xticklabels()]
    numbers, names = boxes[:-2], axis.get_xticks()[-2:]
    assert all(one.x1 < other.x0 for one, other in pairwise(numbers))
    assert names[1] - names[0] > 4


def test_a_line_breaks_where_the_constant_is_zero_or_missing():
    heights = {0: 1.0, 1: 2.0, 2: 0.0, 3: 3.0, 5: 4.0}
    axis = drawn({f"blocks.{k}.fc.weight": height for k, height in heights.items()})
    line, zeros = axis.lines
    assert list(line.get_xdata()) == [0, 1, 2, 3, 4, 5]
    assert points(line) == [(0, 1.0), (1, 2.0), (3, 3.0), (5, 4.0)]
    assert (list(zeros.get_xdata()), zeros.get_markerfacecolor(), zeros.get_linewidth()) == ([2], "white", 0)
    assert zeros.get_transform() == axis.get_xaxis_transform()  # on the lower edge, whatever the axis shows
    assert "1 of 5 matrices are at 0" in axis.figure.get_suptitle()


def test_zeros_of_two_kinds_stand_side_by_side():
    axis = drawn({f"blocks.{k}.{kind}.weight": 0.0 for k in range(2) for kind in ("fc1", "fc2")})
    one, other = axis.lines
    assert not set(one.get_xdata()) & set(other.get_xdata())
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["fc1 (0)", "fc2 (0)"]


def test_one_constant_is_no_picture():
    assert drawn({"fc.weight": 1.0}) is None
    assert drawn({}) is None
    assert drawn({"fc1.weight": 1.0, "fc2.weight": 2.0}) is not None


def test_vectors_are_too_many():
    assert drawn({"fc1.bias": 1.0, "fc2.bias": 2.0}, role="bias") is None
