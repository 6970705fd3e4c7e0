"""What is looked at in the gradients before anything moves: are they finite, and are they more than rounding noise."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gluon.plan import Chunk

__all__ = ["check_gradients", "signal_mask"]

# Rounding noise relative to the largest gradient of the same module, measured on convolutions and linear layers in front of
# batch norm and on key biases under softmax: 4e-8 to 7e-4 in fp32, 8e-4 to 2e-2 in bf16; real gradients of vectors were above
# 1e-2. The floors lie between, as far as bf16 lets them.
NOISE_FLOOR = {torch.float64: 2**-40, torch.float32: 2**-10, torch.bfloat16: 2**-7, torch.float16: 2**-10}
ALONE = 2**-6  # a vector alone in its module is compared with the whole model, hence with a lower floor
GUARDED = ("rms", "euclidean", "max")


def check_gradients(
    names: list[str], gradients: list[Tensor], references: list[Tensor], on_nonfinite: str
) -> Tensor | None:
    """Return the largest magnitude of every gradient, after checking that all are dense and finite.

    Args:
        names: Names of the parameters.
        gradients: Their gradients.
        references: Their gradients at the previous iterate, or an empty list.
        on_nonfinite: `raise`, `skip` or `ignore`; only `ignore` never waits for the device.

    Returns:
        One number per gradient, or `None` if the step is to be skipped.

    Raises:
        RuntimeError: If a gradient is sparse.
        FloatingPointError: If a gradient is not finite and `on_nonfinite` is `raise`.
    """
    for name, gradient in zip(names, gradients, strict=True):
        if gradient.layout != torch.strided:
            raise RuntimeError(f"The gradient of {name!r} is sparse. Build its embedding with `sparse=False`.")
    device = gradients[0].device
    amax = torch.stack([norm.float().to(device) for norm in torch._foreach_norm(gradients, float("inf"))])
    if on_nonfinite == "ignore":
        return amax
    finite = amax.isfinite()
    if references:
        finite &= torch.stack([n.to(device) for n in torch._foreach_norm(references, float("inf"))]).isfinite()
    if bool(finite.all()):
        return amax
    if on_nonfinite == "skip":
        return None
    bad = [f"{names[i]!r} {tuple(gradients[i].shape)}" for i in (~finite).nonzero().flatten().tolist()]
    listed = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    raise FloatingPointError(
        f"Non-finite gradient in {listed}. No weight and no state was changed. Lower `lr`, look for overflow in the loss, or "
        "set `on_nonfinite='skip'` to drop such steps."
    )


def signal_mask(chunks: list[Chunk], names: list[str], amax: Tensor) -> list[Tensor] | None:
    """Return 1 for a gradient and 0 for rounding noise, in the order of the plan; `None` where no group is guarded.

    A scale-free LMO makes a full step of whatever it is given. Where the true gradient is zero - a bias in front of batch
    norm, a key bias under softmax - what it is given is rounding error, so vectors are compared with the largest gradient of
    their own module in the same backward pass (a vector alone in its module: with the whole model).
    """
    guarded = [chunk.group["norm"] in GUARDED for chunk in chunks]
    if not any(guarded):
        return None
    modules: dict[str, int] = {}
    owner = [modules.setdefault(name.rpartition(".")[0], len(modules)) for name in names]
    index = torch.tensor(owner, device=amax.device)
    largest = torch.zeros(len(modules), device=amax.device).scatter_reduce_(0, index, amax, "amax")
    alone = torch.bincount(index, minlength=len(modules)) == 1
    largest = torch.where(alone, ALONE * amax.max(), largest)
    floors = [
        _floor(chunk) if watched else 0.0 for chunk, watched in zip(chunks, guarded, strict=True) for _ in chunk.indices
    ]
    return list((amax >= largest[index] * torch.tensor(floors, device=amax.device)).to(amax.dtype).unbind())


def _floor(chunk: Chunk) -> float:
    floor = chunk.group["noise_floor"]
    return NOISE_FLOOR.get(chunk.params[0].dtype, 2**-7) if floor is None else floor
