"""One chunk of a step: the estimator is advanced, its direction goes through the LMO, the weights move.

    M <- estimator(M, c_new, c_old);   X <- (1 - lr * weight_decay) X - lr * radius * D(M)

The only place that moves parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_gluon.estimators.carry import Carry
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms.base import Norm
from lightning_gluon.norms.numerics import Workspace
from lightning_gluon.norms.orthogonalize import compute_dtype, staging_dtype
from lightning_gluon.norms.spectral import Spectral
from lightning_gluon.norms.table import NORMS
from lightning_gluon.step.plan import Chunk, Stack, stack_views

__all__ = ["Job", "advance_", "advance_all_", "prepare"]

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch has a fused AdamW kernel


@dataclass
class Job:
    """A chunk with all that its step reads and writes on the device."""

    chunk: Chunk
    params: list[Tensor]
    new: list[Tensor]
    old: list[Tensor]
    buffers: dict[str, list[Tensor]]
    members: list[Carry]
    signal: list[Tensor | None] | None

    def arguments(self, *, compiled: bool) -> tuple:
        """Return what `advance_` takes.

        Compiled, what schedules change are tensors, since every number would make a graph of its own, and what the step
        writes is marked as staying where it is: torch captures a CUDA graph only of what it may write in place.
        """
        group = self.chunk.group
        lengths: Any = [group["lr"] * radius for radius in self.chunk.radii]
        keep: Any = 1 - group["lr"] * group["weight_decay"]
        if compiled:
            kind: dict[str, Any] = {"dtype": self.new[0].dtype, "device": self.params[0].device}
            # Non-blocking, or the host would wait for the device.
            lengths = torch.tensor(lengths, dtype=kind["dtype"]).to(kind["device"], non_blocking=True)
            keep = torch.full((), keep, **kind) if group["weight_decay"] else 1
            for tensor in itertools.chain(self.params, *self.buffers.values()):
                torch._dynamo.mark_static_address(tensor, guard=False)
        signs = group.get("every", 1) > 1 and group["steps"] % group["every"] > 0  # LionMuon between spectral steps
        return self.chunk, self.params, self.new, self.old, self.buffers, lengths, keep, signs, self.signal

    def finish(self) -> None:
        """Keep the buffers for the next step."""
        for name, values in self.buffers.items():
            for member, value in zip(self.members, values, strict=True):
                member.store(name, value)


def prepare(
    state: Any, chunk: Chunk, new: list[Tensor], old: list[Tensor] | None, signal: list[Tensor | None] | None
) -> Job | None:
    """Load the buffers of a chunk; AdamW's chunks are stepped here and now, by torch's own kernel.

    Args:
        state: The optimizer's state, by parameter.
        chunk: Parameters of one group.
        new: Their gradients, which are only read.
        old: Their gradients at the previous iterate; `None` where there are none yet.
        signal: 0 where a gradient is rounding noise, 1 elsewhere; `None` for a parameter that is not judged.

    Returns:
        What is left to do.
    """
    group, params = chunk.group, chunk.params
    if group["estimator"] == "adamw":
        _adamw_(state, group, params, new)
        return None
    work = torch.promote_types(new[0].dtype, torch.float32)
    new = [gradient.to(work) for gradient in new]
    old = new if old is None else [gradient.to(work) for gradient in old]
    members = [
        Carry(state[parameter], parameter, views, group)
        for parameter, views in zip(params, chunk.factored, strict=True)
    ]
    buffers = {
        name: [member.load(name, gradient) for member, gradient in zip(members, new, strict=True)]
        for name in ESTIMATORS[group["estimator"]].buffers
    }
    for stack in chunk.stacks:
        stack.compute = stack.compute or _compute_dtype(group, stack, new[0])
    return Job(chunk, params, new, old, buffers, members, signal)


def advance_all_(jobs: list[tuple]) -> None:
    """Advance all chunks of a step, as one graph for a compiler."""
    for arguments in jobs:
        advance_(*arguments, workspace=Workspace())


def advance_(
    chunk: Chunk,
    params: list[Tensor],
    new: list[Tensor],
    old: list[Tensor],
    buffers: dict[str, list[Tensor]],
    lengths: Sequence[float] | Tensor,
    keep: float | Tensor,
    signs: bool,
    signal: list[Tensor | None] | None = None,
    *,
    workspace: Workspace,
) -> None:
    """Advance buffers and weights: all that runs on the device, and nothing that waits for it.

    Args:
        chunk: Layout and options.
        params: The weights.
        new: Gradients in fp32 or wider.
        old: Gradients at the previous iterate.
        buffers: The estimator's buffers, in the dtype of the gradients.
        lengths: Step length of every parameter, `lr * radius`.
        keep: What decay leaves of the weights, `1 - lr * weight_decay`.
        signs: Step along the signs instead of the spectral LMO.
        signal: 0 where an entry takes no step, 1 elsewhere; `None` for a parameter that steps whole.
        workspace: Buffers to reuse.
    """
    group = chunk.group
    direction = ESTIMATORS[group["estimator"]].update(buffers, new, old, group)
    if signal is not None:
        direction = _heard(direction, signal)
    if isinstance(keep, Tensor) or keep != 1:
        torch._foreach_mul_(params, keep)
    if group["norm"] == "identity":
        _subtract_(params, direction, list(lengths))
        return
    for stack in chunk.stacks:
        units, factors = _lmo(chunk, stack, direction, signs, workspace)
        scaled = [lengths[slot.member] * factor for slot, factor in zip(stack.slots, factors, strict=True)]
        targets = [slot.of(params[slot.member]) for slot in stack.slots]
        _subtract_(targets, [slot.update(units, params[slot.member].shape) for slot in stack.slots], scaled)


def _heard(direction: list[Tensor], signal: list[Tensor | None]) -> list[Tensor]:
    """Return directions without the entries that are rounding noise: the LMO of zero is zero, and of a part its own."""
    judged = {index: entries for index, entries in enumerate(signal) if entries is not None}
    if not judged:
        return direction
    kept = torch._foreach_mul([direction[index] for index in judged], list(judged.values()))
    replaced = dict(zip(judged, kept, strict=True))
    return [replaced.get(index, whole) for index, whole in enumerate(direction)]


def _subtract_(targets: list[Tensor], pieces: list[Tensor], lengths: list[Any]) -> None:
    """Subtract `length piece` from every target; equal numbers in one call."""
    if isinstance(lengths[0], Tensor):
        for target, piece, length in zip(targets, pieces, lengths, strict=True):
            target.sub_(piece.to(length.dtype) * length)
        return
    for length in dict.fromkeys(lengths):
        where = [index for index, other in enumerate(lengths) if other == length]
        torch._foreach_add_([targets[i] for i in where], [pieces[i] for i in where], alpha=-length)


def norm_of(group: dict[str, Any], dtype: torch.dtype | None = None) -> Norm:
    """Return the norm of a group, with its options."""
    kind = NORMS[group["norm"]]
    if not issubclass(kind, Spectral):
        return kind()
    return kind(group["scaling"], group["orthogonalizer"], group["orthogonalizer_steps"], dtype)


def _lmo(
    chunk: Chunk, stack: Stack, direction: list[Tensor], signs: bool, workspace: Workspace
) -> tuple[Tensor, list[float]]:
    """Return a stack of directions and the factor that makes each a point of its unit sphere."""
    slot, like = stack.slots[0], direction[0]
    compute = stack.compute or like.dtype
    norm = norm_of(chunk.group, compute)
    shape = (stack.count, *stack.shape)
    spectral = isinstance(norm, Spectral)
    if not spectral and len(stack.slots) == 1 and slot.whole:
        batch = direction[slot.member].reshape(shape)
    else:
        batch = workspace.take("gather", shape, like, dtype=staging_dtype(compute) if spectral else None)
        stack_views(stack, direction, batch)
    scales = [norm.scale(*slot.view.matrix[1:], slot.view.kernel) for slot in stack.slots]
    if signs:
        rms = chunk.group["sign_radius"] * math.sqrt(min(stack.shape) / math.prod(stack.shape))
        return batch.sign_(), [rms * scale for scale in scales]
    return norm.lmo_(batch, workspace), scales


def _compute_dtype(group: dict[str, Any], stack: Stack, like: Tensor) -> torch.dtype:
    """Return the dtype in which a stack is orthogonalised."""
    name, shape = group["orthogonalizer_dtype"], (stack.count, *stack.shape)
    if name:
        return getattr(torch, name)
    return compute_dtype(like.device, method=group["orthogonalizer"], dtype=like.dtype, shape=shape)


def _adamw_(state: Any, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> None:
    """Step parameters on torch's own AdamW kernel, a fused one where the layouts are what it takes them for."""
    fused = params[0].device.type in FUSED_DEVICES
    for parameter in params:
        if "exp_avg" not in state[parameter]:
            place = parameter.device if fused else "cpu"
            state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=place)
            state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
    moments = {key: [state[parameter][key] for parameter in params] for key in ("exp_avg", "exp_avg_sq", "step")}
    # It walks through memory; moments lie like the parameter, except where that has gaps.
    lists = zip(params, gradients, moments["exp_avg"], strict=True)
    fused = fused and all(one.stride() == new.stride() == moment.stride() for one, new, moment in lists)
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
