"""The step on a GPU, counted without one: limits, so that the CUDA path cannot grow slower unseen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from benchmarks import counts, roofline
from benchmarks.step import build


@dataclass(frozen=True)
class Limit:
    """What a step may take at most; the numbers are those of the code as it stands."""

    launches: int
    bytes_per_parameter: float
    tflop: float
    waits: int = 1  # the check of the gradients
    linalg: int = 0


LIMITS = {
    "vit_s/4": {  # 3 of 12 layers
        "gluon": Limit(293, 49.7, 0.0541),
        "muon": Limit(154, 63.6, 0.0511),
        "lionmuon": Limit(301, 68.7, 0.0541),
        "gluon-mvr1": Limit(318, 129.7, 0.0541),
        "limuon r=16": Limit(1153, 140.3, 0.0554, linalg=224),
    },
    "qwen2_5/12": {  # 2 of 24 layers
        "gluon": Limit(237, 42.4, 0.516),
        "gluon, five steps": Limit(217, 41.9, 0.464),
        "gluon, no check": Limit(235, 38.6, 0.516, waits=0),
        "muon": Limit(200, 53.6, 0.516),
        "lionmuon": Limit(245, 60.2, 0.516),
        "gluon-mvr1": Limit(273, 122.4, 0.516),
        "limuon r=16": Limit(914, 125.7, 0.524, linalg=240),
        "gluon-nesterov": Limit(245, 60.2, 0.516),
        "gluon-dual": Limit(271, 68.2, 0.516),
        "muon-dual": Limit(214, 59.4, 0.516),
        "gluon-mix": Limit(327, 236.2, 0.516),
        "gluon-lookahead": Limit(393, 98.4, 0.516),
        "gluon-ema-nesterov": Limit(419, 114.4, 0.516),
        "gluon-anchor": Limit(289, 62.4, 0.516),
        "gluon-lowrank r=16": Limit(878, 45.7, 0.524, linalg=240),
        "gluon-lowrank r=16, int4": Limit(1018, 156.8, 0.526, linalg=240),
        "muoneq": Limit(254, 80.2, 0.516),
        "normuon": Limit(342, 109.1, 0.516),
        "aurora": Limit(415, 106.5, 0.927),
        "hyperball": Limit(383, 99.9, 0.516),
        "gluon, brake": Limit(453, 182.4, 0.516),
        "af-muon": Limit(327, 96.9, 0.516),
        "symmetry-compatible": Limit(208, 52.6, 0.516),
        "mimuon": Limit(260, 79.6, 0.516),
        "gluon, heads apart": Limit(241, 41.9, 0.465),
        "ef21-muon": Limit(427, 104.4, 0.516),
    },
    "mamba_130m/12": {  # 2 of 24 layers
        "gluon": Limit(306, 47.0, 0.1471),
        "muon": Limit(243, 56.9, 0.1471),
        "lionmuon": Limit(316, 64.4, 0.1471),
        "gluon-mvr1": Limit(328, 127.0, 0.1471),
        "limuon r=16": Limit(969, 132.1, 0.1494, linalg=144),
    },
}
CASES = [(model, row) for model, rows in LIMITS.items() for row in rows]


@pytest.mark.parametrize(("model", "row"), CASES, ids=str)
def test_a_step_on_a_gpu_stays_within_its_limits(model: str, row: str) -> None:
    pytest.importorskip("timm" if model.startswith("vit") else "transformers")
    limit = LIMITS[model][row]
    found = counts.count(build(model)[0], counts.ROWS[row])
    assert found["launches"] <= limit.launches
    assert found["bytes_per_parameter"] <= limit.bytes_per_parameter
    assert 0.99 * limit.tflop <= found["tflop"] <= limit.tflop
    assert found["waits"] <= limit.waits
    assert found["linalg"] <= limit.linalg
    assert "float16" in found["dtypes"]  # the products that matter
    assert found["wide_share"] < 3e-3  # squares of thin matrices, at low rank


@pytest.mark.parametrize(("aspect", "steps", "products"), [(1, 6, 18), (4, 6, 39), (4, 5, 35), (1, 5, 15)])
def test_a_roofline_knows_which_products_are_symmetric(aspect: int, steps: int, products: int) -> None:
    found = roofline.Products.of(aspect, steps)
    assert found.whole + found.symmetric == products  # as docs/primers/orthogonalization.md counts them
    assert found.whole == (3 * aspect if aspect > 1.5 else steps * aspect)


def test_a_step_is_as_long_as_its_launches_or_its_work() -> None:
    row = {"tflop": 7.9, "bytes_per_parameter": 43.0, "parameters": 10**8, "launches": 100}
    assert roofline.roofline(row) == pytest.approx({"launches": 0.4, "products": 10.0, "traffic": 1.0, "step": 11.0})
    assert roofline.roofline({**row, "launches": 10_000}, spared=0.5)["step"] == pytest.approx(40.0)


def test_launches_do_not_grow_with_depth() -> None:
    pytest.importorskip("timm")
    found = [counts.count(build(model)[0], counts.ROWS["gluon"])["launches"] for model in ("vit_s/4", "vit_s/2")]
    assert found[1] - found[0] <= 5  # lists of tensors have a longest length


# ------------------------------------------------------------------------------------------------------ the counter


def counted(call) -> counts.Counts:
    """Return the counts of a call on fake CUDA tensors."""
    with counts.fake_gpu(), counts.StepCounter() as counter:
        call()
        return counter.counts


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, device=counts.DEVICE, dtype=dtype)


def test_a_product_has_its_operations_and_an_elementwise_operator_its_bytes() -> None:
    found = counted(lambda: empty(4, 32, 64) @ empty(4, 64, 16))
    assert found.flop == {"float32": 2 * 4 * 32 * 64 * 16}
    assert found.launches.total() == 1
    assert found.moved.total() == 0
    found = counted(lambda: empty(8, 8) + empty(8, 8))
    assert (found.launches.total(), found.moved.total()) == (1, 3 * 256)
    found = counted(lambda: empty(8, 8).mul_(2.0))
    assert (found.launches.total(), found.moved.total()) == (1, 2 * 256)


def test_the_base_of_a_product_is_copied_unless_it_is_the_result() -> None:
    def product(in_place: bool) -> None:
        base, left = empty(2, 8, 8), empty(2, 8, 8)
        torch.baddbmm(base, left, left, out=base if in_place else empty(2, 8, 8))

    assert counted(lambda: product(in_place=True)).launches.total() == 1
    found = counted(lambda: product(in_place=False))
    assert (found.launches.total(), found.moved.total()) == (2, 2 * 512)


@pytest.mark.parametrize(
    ("others", "launches"),
    [
        (lambda: [empty(8, 8) for _ in range(96)], 2),  # 48 tensors a launch, for three lists
        (lambda: [empty(8, 8, dtype=torch.float16) for _ in range(96)], 96),
        (lambda: [empty(8, 8).mT for _ in range(96)], 96),
    ],
    ids=["alike", "another dtype", "other strides"],
)
def test_lists_are_one_kernel_where_they_are_alike(others, launches: int) -> None:
    found = counted(lambda: torch._foreach_add([empty(8, 8) for _ in range(96)], others()))
    assert found.launches.total() == launches


def test_the_host_waits_where_it_reads_and_where_it_copies() -> None:
    assert counted(lambda: empty(3).sum().item()).waits.total() == 1
    assert counted(lambda: empty(3).cpu()).waits.total() == 1
    assert counted(lambda: bool((empty(3) > 0).all())).waits.total() == 1
    assert counted(lambda: empty(3).sum()).waits.total() == 0


def test_decompositions_are_counted_by_matrix() -> None:
    found = counted(lambda: torch.linalg.svd(empty(5, 8, 8)))
    assert (found.linalg.total(), found.waits.total()) == (5, 1)
    assert counted(lambda: torch.linalg.qr(empty(5, 8, 8))).linalg.total() == 5
