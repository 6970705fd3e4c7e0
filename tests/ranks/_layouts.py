"""Small models, and the ways in which their weights can lie over ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

DEVICE = os.environ.get("RANKS_DEVICE", "cpu")  # or "cuda": the same tests over NCCL, one GPU per rank
VOCABULARY = 97  # odd: shards of the table are uneven


def qwen(layers: int = 2, width: int = 32, inner: int = 50) -> nn.Module:
    """Return a small Qwen2: a table that is tied to the head, grouped queries, uneven shards."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config)


def vit() -> nn.Module:
    """Return a small ViT: fused qkv, a convolution, position and class tokens whose shards are empty on most ranks."""
    import timm

    small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **small)


def mamba() -> nn.Module:
    """Return a small Mamba: fused projections of unequal parts, depthwise filters, arrays that are no map."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8))


def mixture() -> nn.Module:
    """Return a small mixture of experts, whose matrices lie in stacks."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=3,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    return Qwen3MoeForCausalLM(config)


def convolutions() -> nn.Module:
    """Return a small net of convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(),
        nn.Conv2d(10, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


class AdaptedLinear(nn.Linear):
    """A frozen map with a LoRA beside it, under the names of peft."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.requires_grad_(False)
        self.rank, self.alpha = 3, 6
        self.lora_A, self.lora_B = nn.Linear(inputs, 3, bias=False), nn.Linear(3, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 2 * self.lora_B(self.lora_A(x))


class AdaptedBlock(nn.Module):
    """Adapters, frozen maps and a norm that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(12), AdaptedLinear(12, 17), AdaptedLinear(17, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def adapters() -> nn.Module:
    """Return a small net of frozen maps with adapters, between others that learn as a whole."""
    net = nn.Sequential()
    net.add_module("first", nn.Linear(12, 12))
    net.add_module("blocks", nn.Sequential(AdaptedBlock(), AdaptedBlock()))
    net.add_module("last", nn.Linear(12, 5))
    return net


def tables() -> nn.Module:
    """Return a net that is nearly all table, with a head of its own."""
    return nn.Sequential(nn.Embedding(501, 24), nn.Linear(24, 24), nn.Linear(24, 8))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "adapters": adapters,
    "qwen": qwen,
    "deep qwen": lambda: qwen(layers=6),
    "deepest qwen": lambda: qwen(layers=24),
    "wide qwen": lambda: qwen(width=128, inner=192),
    "tables": tables,
    "vit": vit,
    "mamba": mamba,
    "mixture": mixture,
    "convolutions": convolutions,
}


def build(kind: str) -> nn.Module:
    """Return a model whose weights are the same on every rank."""
    torch.manual_seed(0)
    return MODELS[kind]().to(DEVICE)


def layers_of(net: nn.Module) -> list[nn.Module]:
    """Return the repeated layers of a model, which are wrapped one by one."""
    for name in ("model.layers", "backbone.layers", "blocks"):
        try:
            return list(net.get_submodule(name).children())
        except AttributeError:
            continue
    return [layer for layer in net.children() if isinstance(layer, nn.Conv2d)]


@lru_cache
def mesh_of(**sizes: int) -> Any:
    """Return the mesh of these dimensions; every call makes groups, so it is kept."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(DEVICE, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def shard(net: nn.Module, mesh: Any, **given: Any) -> None:
    """Wrap the layers and the rest: tied weights are in one group."""
    from torch.distributed.fsdp import fully_shard

    for layer in layers_of(net):
        fully_shard(layer, mesh=mesh, **given)
    fully_shard(net, mesh=mesh, **given)


def split(net: nn.Module, mesh: Any) -> None:
    """Split the two halves of every MLP, by columns and by rows."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    columns = ("gate_proj", "up_proj", "fc1", "in_proj")
    rows = ("down_proj", "fc2", "out_proj")
    plan: dict[str, Any] = {}
    for name, layer in net.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(layer, nn.Linear) and last in columns:
            plan[name] = ColwiseParallel()
        elif isinstance(layer, nn.Linear) and last in rows:
            plan[name] = RowwiseParallel()
    parallelize_module(net, mesh, plan)


STRATEGIES = ("ddp", "fsdp2", "hsdp", "tp", "fsdp+tp")


def spread(net: nn.Module, strategy: str, **given: Any) -> dict[str, Any]:
    """Lay a model over all ranks, and return what its optimizer is told."""
    size = dist.get_world_size()
    if strategy == "ddp":
        return {"process_group": dist.group.WORLD, "share_work": True}
    if strategy == "fsdp2":
        shard(net, mesh_of(shard=size), **given)
    elif strategy == "hsdp":
        shard(net, mesh_of(replicate=2, shard=size // 2), **given)
    elif strategy == "tp":
        split(net, mesh_of(tensor=size))
    else:
        mesh = mesh_of(data=size // 2, tensor=2)
        split(net, mesh["tensor"])
        shard(net, mesh["data"], **given)
    return {}


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, on every rank."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that all ranks have, laid over them like another."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(like.device, copy=True)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
