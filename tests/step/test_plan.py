"""The plan of a step: stacks of equal matrices, transposes merged where the norm allows, chunks of bounded size."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gluon import Gluon
from lightning_gluon.step.plan import build_plan, stack_views


def groups(shapes: list[tuple[int, ...]], role: str = "hidden", **options: object) -> list[dict]:
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return Gluon([{"params": params, "role": role, **options}], lr=0.1).param_groups


def stacks(shapes: list[tuple[int, ...]], **options: object) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for chunk in build_plan(groups(shapes, **options)):
        for stack in chunk.stacks:
            found[stack.shape] = found.get(stack.shape, 0) + stack.count
    return found


def test_transposes_share_a_stack_of_a_norm_that_turns() -> None:
    assert stacks([(3, 5), (5, 3), (4, 4)]) == {(3, 5): 2, (4, 4): 1}
    assert stacks([(3, 5), (5, 3)], norm="row") == {(3, 5): 1, (5, 3): 1}


def test_vectors_of_one_length_share_a_stack() -> None:
    assert stacks([(7,), (7,), (2,)], role="bias") == {(1, 7): 2, (1, 2): 1}


def test_a_norm_without_stacks_has_none() -> None:
    chunks = build_plan(groups([(3, 5)], norm="identity"))
    assert [chunk.stacks for chunk in chunks] == [[]]


def test_chunks_are_bounded_and_a_larger_parameter_stands_alone() -> None:
    chunks = build_plan(groups([(4, 4)] * 5 + [(10, 10)]), chunk_numel=40)
    sizes = [sum(p.numel() for p in chunk.params) for chunk in chunks]
    assert sum(sizes) == 180 and sorted(sizes) == [16, 32, 32, 100]


def test_parameters_without_a_gradient_or_entries_are_left_out() -> None:
    own = groups([(3, 5), (3, 5), (0, 4)])
    own[0]["params"][1].grad = None
    assert [chunk.indices for chunk in build_plan(own)] == [[0]]


def test_devices_and_dtypes_do_not_mix_in_a_chunk() -> None:
    params = [nn.Parameter(torch.randn(3, 5, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float32)]
    for p in params:
        p.grad = torch.zeros_like(p)
    chunks = build_plan(Gluon([{"params": params, "role": "hidden"}], lr=0.1).param_groups)
    assert sorted(chunk.indices for chunk in chunks) == [[0, 2], [1]]


def test_slots_read_and_write_their_own_matrices() -> None:
    own = groups([(3, 5), (5, 3)])
    (chunk,) = build_plan(own)
    (stack,) = chunk.stacks
    buffer = torch.empty(2, 3, 5)
    stack_views(stack, chunk.params, buffer)
    for slot in stack.slots:
        p = chunk.params[slot.member]
        expected = p.mT if slot.transposed else p
        assert torch.equal(buffer[slot.start], expected) and torch.equal(slot.matrices(p)[0], expected)
        assert torch.equal(slot.read(slot.place(buffer, p.shape)), p) and torch.equal(slot.piece(buffer, p.shape), p)
