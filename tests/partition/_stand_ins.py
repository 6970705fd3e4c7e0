"""Small modules with the structure and the names of public ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_gluon.partition import partition


def roles(module: nn.Module, **options: object) -> dict[str, str]:
    return {name: route.role for name, route in partition(module, **options).routes.items()}


def names_of(role: str, module: nn.Module, **options: object) -> list[str]:
    """Names of the parameters of a role, without `.weight`."""
    return [name.removesuffix(".weight") for name, found in roles(module, **options).items() if found == role]


class Attributes(nn.Module):
    """A module whose attributes are the given modules and parameters."""

    def __init__(self, **attributes: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


class Runs(Attributes):
    """The same with a forward pass."""

    def __init__(self, forward: Callable[..., Any], **attributes: nn.Module | nn.Parameter) -> None:
        super().__init__(**attributes)
        self.run = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def mlp(reads: int = 8, width: int = 16, gives: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(reads, width), nn.ReLU(), nn.Linear(width, gives))


def deep() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def no_biases_(module: nn.Module) -> nn.Module:
    """Zero every bias and make every matrix generic, so that scales pass through."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        else:
            nn.init.ones_(parameter)
    return module.eval()


class GraphLinear(nn.Module):
    """torch_geometric's own linear layer."""

    def __init__(self, reads: int, gives: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = reads, gives
        self.weight = parameter(gives, reads)


GraphLinear.__name__ = "Linear"


class GCNConv(nn.Module):
    def __init__(self, reads: int, gives: int) -> None:
        super().__init__()
        self.lin = GraphLinear(reads, gives)
        self.bias = parameter(gives)


class SAGEConv(nn.Module):
    def __init__(self, reads: int, gives: int) -> None:
        super().__init__()
        self.lin_l, self.lin_r = GraphLinear(reads, gives), GraphLinear(reads, gives)


class GINConv(nn.Module):
    def __init__(self, reads: int, gives: int) -> None:
        super().__init__()
        self.nn = mlp(reads, 16, gives)


class HeteroLinear(nn.Module):
    """One map per type, stored (types, in, out)."""

    def __init__(self, types: int, reads: int, gives: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = reads, gives
        self.weight = parameter(types, reads, gives)


class RGCNConv(HeteroLinear):
    def __init__(self, relations: int, reads: int, gives: int) -> None:
        super().__init__(relations, reads, gives)
        self.root = parameter(reads, gives)


class GraphConvolution(nn.Module):
    """The layer of the first graph convolutional network: stored (in, out)."""

    def __init__(self, reads: int, gives: int) -> None:
        super().__init__()
        self.in_features, self.out_features = reads, gives
        self.weight = parameter(reads, gives)


class AttentionPool2d(nn.Module):
    """The end of CLIP's ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = parameter(50, 16)
        for name in ("k_proj", "q_proj", "v_proj"):
            setattr(self, name, nn.Linear(16, 16))
        self.c_proj = nn.Linear(16, 8)


def autoencoder_kl() -> nn.Module:
    """diffusers' AutoencoderKL: what is registered last runs before the decoder."""
    return Attributes(
        encoder=Attributes(conv_in=nn.Conv2d(3, 8, 3), conv_out=nn.Conv2d(8, 8, 3)),
        decoder=Attributes(conv_in=nn.Conv2d(4, 8, 3), middle=nn.Conv2d(8, 8, 3), conv_out=nn.Conv2d(8, 3, 3)),
        quant_conv=nn.Conv2d(8, 8, 1),
        post_quant_conv=nn.Conv2d(4, 4, 1),
    )


def vq_model() -> nn.Module:
    """diffusers' VQModel: the code has as many channels as an image."""
    return Attributes(
        encoder=Attributes(conv_in=nn.Conv2d(3, 8, 3), conv_out=nn.Conv2d(8, 3, 3)),
        quant_conv=nn.Conv2d(3, 3, 1),
        quantize=Attributes(embedding=nn.Embedding(16, 3)),
        post_quant_conv=nn.Conv2d(3, 3, 1),
        decoder=Attributes(conv_in=nn.Conv2d(3, 8, 3), middle=nn.Conv2d(8, 8, 3), conv_out=nn.Conv2d(8, 3, 3)),
    )


def demucs() -> nn.Module:
    """Demucs: the recurrent bottleneck is registered after the decoder."""

    def encode(reads: int, gives: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(reads, gives, 8, 4), nn.ReLU(), nn.Conv1d(gives, 2 * gives, 1), nn.GLU(1))

    def decode(reads: int, gives: int, *after: nn.Module) -> nn.Module:
        up = nn.ConvTranspose1d(reads, gives, 8, 4)
        return nn.Sequential(nn.Conv1d(reads, 2 * reads, 3), nn.GLU(1), up, *after)

    return Attributes(
        encoder=nn.ModuleList([encode(2, 8), encode(8, 16)]),
        decoder=nn.ModuleList([decode(16, 8, nn.ReLU()), decode(8, 8)]),
        lstm=Attributes(lstm=nn.LSTM(16, 16, bidirectional=True), linear=nn.Linear(32, 16)),
    )


class Decoder(nn.Module):
    """One block of a pix2pix generator's decoder."""

    def __init__(self, reads: int, gives: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(reads, gives, 4, 2, 1)
        self.norm = nn.BatchNorm2d(gives)


def pix2pix(*, final_first: bool) -> nn.Module:
    """A generator whose last convolution may be registered first."""
    encoders = nn.ModuleList([Attributes(conv=nn.Conv2d(3, 4, 4)), Attributes(conv=nn.Conv2d(4, 8, 4))])
    decoders = nn.ModuleList([Decoder(8, 8), Decoder(16, 4), Decoder(8, 4)])
    parts = {"encoders": encoders, "decoders": decoders, "final_conv": nn.Conv2d(4, 3, 1)}
    order = ("final_conv", "encoders", "decoders") if final_first else tuple(parts)
    return Attributes(**{name: parts[name] for name in order})
