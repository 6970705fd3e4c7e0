"""What is looked at in the gradients before anything moves: are they finite, and are they more than rounding noise."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from lightning_gluon.norms.table import NORMS
from lightning_gluon.step.plan import Chunk

__all__ = ["NOISE_FLOOR", "GradientCheck"]

# Rounding noise relative to the largest gradient (RMS) of the same module, measured on layers in front of batch norm
# and on key biases under softmax: 9e-8 to 8e-4 in fp32, 3e-4 to 3e-2 in bf16 (a linear layer behind another one and in
# front of batch norm: 0.2, which no floor can tell); real gradients of vectors with siblings were above 7e-2.
NOISE_FLOOR = {torch.float64: 2**-38, torch.float32: 2**-9, torch.bfloat16: 2**-6, torch.float16: 2**-9}
# A vector alone in its module (LayerScale: 1e-2) is compared with the whole model, hence with a lower floor.
ALONE = 2**-6


class GradientCheck:
    """What is known of a plan's gradients before a step: computed once per plan, so that a step only reads norms.

    A scale-free LMO makes a full step of whatever it is given. Where the true gradient is zero - a bias in front of
    batch norm, a key bias under softmax - what it is given is rounding error, so vectors are compared (in RMS) with the
    largest gradient of their own module in the same backward pass; a vector alone in its module with the whole model.

    Args:
        chunks: The plan.
    """

    def __init__(self, chunks: list[Chunk]) -> None:
        self.groups = [chunk.group for chunk in chunks for _ in chunk.indices]
        self.names = [name for chunk in chunks for name in chunk.names]
        params = [parameter for chunk in chunks for parameter in chunk.params]
        self.guarded = any(NORMS[chunk.group["norm"]].guarded for chunk in chunks)
        self.devices = [parameter.device for parameter in params]
        self.device = self.devices[0]
        modules: dict[str, int] = {}
        owner = [modules.setdefault(name.rpartition(".")[0], len(modules)) for name in self.names]
        floors = [_floor(chunk) for chunk in chunks for _ in chunk.indices]
        self.owner = torch.tensor(owner, device=self.device)
        self.modules = len(modules)
        sizes = Counter(owner)
        self.alone = torch.tensor([sizes[module] == 1 for module in range(self.modules)], device=self.device)
        self.floor = torch.tensor(floors, dtype=torch.float32, device=self.device)
        self.root = torch.tensor([parameter.numel() for parameter in params], device=self.device).float().sqrt_()

    def norms(self, gradients: list[Tensor], references: list[Tensor]) -> Tensor | None:
        """Return the 2-norm of every gradient, after checking that all are dense and finite.

        Args:
            gradients: Gradients in the order of the plan.
            references: Gradients at the previous iterate, or an empty list.

        Returns:
            One number per gradient, or `None` if the step is to be skipped.

        Raises:
            RuntimeError: If a gradient is sparse.
            FloatingPointError: If a gradient is not finite and its group's `on_nonfinite` is `raise`.
        """
        for name, gradient in zip(self.names, gradients, strict=True):
            if gradient.layout != torch.strided:
                raise RuntimeError(f"The gradient of {name!r} is sparse. Build its embedding with `sparse=False`.")
        norms = self._norms(gradients)
        policies = [group["on_nonfinite"] for group in self.groups]
        if set(policies) == {"ignore"}:  # else the host waits for the device
            return norms
        total = norms.sum() + self._norms(references).sum() if references else norms.sum()
        if bool(total.isfinite()):
            return norms
        bad = [  # a norm may overflow where the entries do not
            index
            for index, gradient in enumerate(gradients)
            if policies[index] != "ignore"
            and not (gradient.isfinite().all() and (not references or references[index].isfinite().all()))
        ]
        if not bad:
            return norms
        bad = [index for index in bad if policies[index] == "raise"]
        if not bad:
            return None
        some = [f"{self.names[i]!r} {tuple(gradients[i].shape)}" for i in bad]
        listed = ", ".join(some[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise FloatingPointError(
            f"Non-finite gradient in {listed}. No weight and no state was changed. Lower `lr`, look for overflow in "
            "the loss, or set `on_nonfinite='skip'` to drop such steps."
        )

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        # The 2-norm is vectorised on a CPU, the maximum is not: 40 times slower.
        return torch.stack([norm.float().to(self.device) for norm in torch._foreach_norm(tensors)])

    def signal(self, norms: Tensor) -> list[Tensor] | None:
        """Return 1 for a gradient and 0 for rounding noise, in the plan's order; `None` where no group is guarded."""
        if not self.guarded:
            return None
        rms = norms / self.root
        largest = rms.new_zeros(self.modules).scatter_reduce_(0, self.owner, rms, "amax")
        largest = torch.where(self.alone, ALONE * rms.max(), largest)
        heard = (rms >= largest[self.owner] * self.floor).to(rms.dtype)
        if len(set(self.devices)) == 1:
            return list(heard.unbind())
        parts = {device: heard.to(device).unbind() for device in set(self.devices)}
        return [parts[device][index] for index, device in enumerate(self.devices)]


def _floor(chunk: Chunk) -> float:
    if not NORMS[chunk.group["norm"]].guarded:
        return 0.0
    floor = chunk.group["noise_floor"]
    return NOISE_FLOOR.get(chunk.params[0].dtype, 2**-7) if floor is None else floor
