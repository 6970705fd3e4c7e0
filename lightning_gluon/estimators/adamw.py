"""AdamW as a row that steps by itself: torch's own kernel advances the moments and moves the weights.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   X <- (1 - lr wd) X - lr radius m_hat / (sqrt(v_hat) + eps)

`m_hat` and `v_hat` are the moments without the bias of their start.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_gluon.ranks.pieces import meta_like

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch has a fused kernel


def adamw_(
    state: MutableMapping[Tensor, Any], group: Mapping[str, Any], params: list[Tensor], gradients: list[Tensor]
) -> None:
    """Step parameters by AdamW, with a fused kernel if the layouts are what it takes them for.

    Args:
        state: The optimizer's state, by parameter.
        group: Their group: `lr`, `radius`, `weight_decay`, `betas`, `eps`.
        params: The parameters.
        gradients: Their gradients.

    References:
        I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101.
    """
    fused = params[0].device.type in FUSED_DEVICES
    for parameter in params:
        if "exp_avg" not in state[parameter]:
            _start(state[parameter], parameter, "cpu" if not fused else parameter.device)
    first = [state[parameter]["exp_avg"] for parameter in params]
    second = [state[parameter]["exp_avg_sq"] for parameter in params]
    steps = [state[parameter]["step"] for parameter in params]
    radius = group["radius"]
    adamw(
        params,
        gradients,
        first,
        second,
        [],
        steps,
        fused=fused and _lie_alike(params, gradients, first),
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"] * radius,
        weight_decay=group["weight_decay"] / radius if radius else 0.0,
        eps=group["eps"],
        maximize=False,
    )


def adamw_layout(parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of one parameter: both moments and the number of steps, as tensors on the meta device."""
    moment = meta_like(parameter)
    return {"exp_avg": moment, "exp_avg_sq": moment, "step": torch.empty((), dtype=torch.float32, device="meta")}


def _start(state: MutableMapping[str, Any], parameter: Tensor, place: torch.device | str) -> None:
    state["step"] = torch.zeros((), dtype=torch.float32, device=place)
    state["exp_avg"] = torch.zeros_like(parameter)
    state["exp_avg_sq"] = torch.zeros_like(parameter)


def _lie_alike(params: list[Tensor], gradients: list[Tensor], moments: list[Tensor]) -> bool:
    """Return whether the kernel may walk through memory; moments lie like parameters, unless those have gaps."""
    triples = zip(params, gradients, moments, strict=True)
    return all(one.stride() == gradient.stride() == moment.stride() for one, gradient, moment in triples)
