"""One chunk of a step: the estimator is advanced, its direction goes through the LMO, the weights move.

    M <- estimator(M, c_new, c_old);   X <- (1 - lr * weight_decay) X - lr * radius * D(M)

The only place that moves parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_gluon.carry import Carry
from lightning_gluon.checks import GUARDED
from lightning_gluon.estimators import ESTIMATORS
from lightning_gluon.norms import Spectral, make_norm
from lightning_gluon.orthogonalize import Workspace, compute_dtype, orthogonalize_, staging_dtype
from lightning_gluon.plan import ORIENTED, Chunk, Stack, stack_views

if TYPE_CHECKING:
    from lightning_gluon.optimizer import Gluon

__all__ = ["update_"]

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch has a fused AdamW kernel


def update_(
    optimizer: Gluon, chunk: Chunk, new: list[Tensor], old: list[Tensor] | None, signal: list[Tensor] | None
) -> None:
    """Advance the estimator of a chunk and move its weights.

    Args:
        optimizer: The optimizer, for its state and its buffers.
        chunk: Parameters of one group.
        new: Their gradients, which are only read.
        old: Their gradients at the previous iterate; `None` where there are none yet.
        signal: 0 where a gradient is rounding noise, 1 elsewhere.
    """
    group, params = chunk.group, chunk.params
    if signal is not None and group["norm"] in GUARDED:
        new = list(torch._foreach_mul(new, signal))
        old = list(torch._foreach_mul(old, signal)) if old is not None else None
    if group["estimator"] == "adamw":
        _adamw_(optimizer.state, group, params, new)
        return
    direction = _estimate(optimizer.state, chunk, new, old)
    if group["lr"] * group["weight_decay"]:
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    _move_(chunk, params, direction, optimizer._workspace)


def _estimate(state: Any, chunk: Chunk, new: list[Tensor], old: list[Tensor] | None) -> list[Tensor]:
    """Advance the buffers of a chunk and return what stands in for its gradients, in fp32 or wider."""
    group, estimator = chunk.group, ESTIMATORS[chunk.group["estimator"]]
    work = torch.promote_types(new[0].dtype, torch.float32)
    new = [gradient.to(work) for gradient in new]
    old = new if old is None else [gradient.to(work) for gradient in old]
    members = [
        Carry(state[parameter], parameter, views, group)
        for parameter, views in zip(chunk.params, chunk.factored, strict=True)
    ]
    buffers = {
        name: [member.load(name, gradient) for member, gradient in zip(members, new, strict=True)]
        for name in estimator.buffers
    }
    direction = estimator.update(buffers, new, old, group)
    for name, values in buffers.items():
        for member, value in zip(members, values, strict=True):
            member.store(name, value)
    return direction


def _move_(chunk: Chunk, params: list[Tensor], direction: list[Tensor], workspace: Workspace) -> None:
    """Move the weights of a chunk by `-lr * radius * D(direction)`."""
    lengths = [-chunk.group["lr"] * radius for radius in chunk.radii]
    if chunk.group["norm"] == "identity":
        for length, targets, pieces in _by_length(lengths, params, direction):
            torch._foreach_add_(targets, pieces, alpha=length)
        return
    for stack in chunk.stacks:
        units, factors = _lmo(chunk, stack, direction, workspace)
        scaled = [lengths[slot.member] * factor for slot, factor in zip(stack.slots, factors, strict=True)]
        targets = [slot.of(params[slot.member]) for slot in stack.slots]
        pieces = [slot.update(units, params[slot.member].shape) for slot in stack.slots]
        for length, some, parts in _by_length(scaled, targets, pieces):
            torch._foreach_add_(some, parts, alpha=length)


def _lmo(chunk: Chunk, stack: Stack, direction: list[Tensor], workspace: Workspace) -> tuple[Tensor, list[float]]:
    """Return a stack of directions and the factor that makes each a point of its unit sphere."""
    group, like = chunk.group, direction[0]
    shape = (stack.count, *stack.shape)
    if group["norm"] not in ORIENTED:
        slot = stack.slots[0]
        if len(stack.slots) == 1 and slot.whole:
            batch = direction[slot.member].reshape(shape)
        else:
            batch = workspace.take("gather", shape, like)
            stack_views(stack, direction, batch)
        return make_norm(group["norm"]).lmo(batch), [1.0] * len(stack.slots)
    method, name = group["orthogonalizer"], group["orthogonalizer_dtype"]
    compute = getattr(torch, name) if name else compute_dtype(like.device, method=method, dtype=like.dtype, shape=shape)
    batch = workspace.take("gather", shape, like, dtype=staging_dtype(compute))
    stack_views(stack, direction, batch)
    norm = Spectral(scaling=group["scaling"])
    scales = [norm.scale(*slot.view.matrix[1:], slot.view.kernel) for slot in stack.slots]
    if group["steps"] % group.get("every", 1):  # LionMuon between its spectral steps
        rms = group["sign_radius"] * math.sqrt(min(stack.shape) / math.prod(stack.shape))
        return batch.sign_(), [rms * scale for scale in scales]
    steps = group["orthogonalizer_steps"]
    return orthogonalize_(batch, method=method, steps=steps, dtype=compute, workspace=workspace), scales


def _adamw_(state: Any, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> None:
    """Step parameters on torch's own AdamW kernel."""
    fused = params[0].device.type in FUSED_DEVICES
    for parameter in params:
        if "exp_avg" not in state[parameter]:
            place = parameter.device if fused else "cpu"
            state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=place)
            state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
    moments = {key: [state[parameter][key] for parameter in params] for key in ("exp_avg", "exp_avg_sq", "step")}
    radius = group["radius"]
    if isinstance(radius, list):
        raise ValueError(f"Group {group['name']!r} runs AdamW, which has one learning rate: give it one radius.")
    adamw(
        params,
        gradients,
        moments["exp_avg"],
        moments["exp_avg_sq"],
        [],
        moments["step"],
        fused=fused,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"] * radius,
        weight_decay=group["weight_decay"] / radius if radius else 0.0,
        eps=group["eps"],
        maximize=False,
    )


def _by_length(
    lengths: list[float], targets: list[Tensor], pieces: list[Tensor]
) -> Iterator[tuple[float, list[Tensor], list[Tensor]]]:
    """Gather equal step lengths, so that each needs one call."""
    for length in dict.fromkeys(lengths):
        where = [index for index, other in enumerate(lengths) if other == length]
        yield length, [targets[index] for index in where], [pieces[index] for index in where]
