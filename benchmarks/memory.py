"""Bytes of a whole training step, counted without running it: real sizes on fake tensors, each storage birth to death.

Two numbers per row. Persistent: bytes of optimizer state per parameter after three steps, beside what
`optimizer.memory()` predicts from shapes alone. Peak: the largest sum of live storages during the third step - weights,
gradients, state, activations and every transient of the optimizer - and by how many bytes per parameter it lies below
AdamW's and Muon's. Memory inside a kernel is not seen.

    python -m benchmarks.memory --models vit_s qwen2_5 mamba_130m
    python -m benchmarks.memory --models qwen2_small qwen2_5 --rows gluon --step cuda   # the step alone
"""

from __future__ import annotations

import argparse
import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import lightning_gluon
from benchmarks.counts import fake_gpu
from benchmarks.journal import Journal
from benchmarks.trajectory_cases import ASKED


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all live storages, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.add, result)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


# ---------------------------------------------------------------- models and losses


Loss = Callable[[nn.Module], Tensor]


def vit_s() -> nn.Module:
    """ViT-S/16."""
    import timm

    return timm.create_model("vit_small_patch16_224")


def qwen2_5_config(*, tiny: bool = False) -> Any:
    """Return the configuration of Qwen2.5-0.5B, or that of a model of its kind for tests."""
    from transformers import Qwen2Config

    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936}
    if tiny:
        sizes = {"hidden_size": 56, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 128}
    return Qwen2Config(num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True, **sizes)


def qwen2_small() -> nn.Module:
    """A model of the kind of Qwen2.5 with 4.5 M parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 2048}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **heads))


def qwen2_5() -> nn.Module:
    """Qwen2.5-0.5B."""
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM(qwen2_5_config())


def mamba_130m() -> nn.Module:
    """Mamba-130M."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24, use_mambapy=True))


def image_loss(batch: int, size: int) -> Loss:
    """Classification of square images."""
    images, labels = torch.randn(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
    return lambda net: nn.functional.cross_entropy(net(images), labels)


def token_loss(batch: int, length: int) -> Loss:
    """Next-token prediction."""
    tokens = torch.zeros(batch, length, dtype=torch.long)

    def loss(net: nn.Module) -> Tensor:
        logits = net(input_ids=tokens, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    return loss


# name -> model, loss, second argument of the loss, as in the LiMuon paper (image size or sequence length)
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Loss], int]] = {
    "vit_s": (vit_s, image_loss, 224),
    "qwen2_5": (qwen2_5, token_loss, 1024),
    "qwen2_small": (qwen2_small, token_loss, 64),
    "mamba_130m": (mamba_130m, token_loss, 256),
}
BATCHES = {"vit_s": (8,), "qwen2_5": (1,), "qwen2_small": (1,), "mamba_130m": (1,)}


# ---------------------------------------------------------------- rows


class Pair:
    """torch's Muon on the hidden matrices, its AdamW on everything else."""

    def __init__(self, model: nn.Module) -> None:
        routes = lightning_gluon.partition(model)
        hidden = [p for route, p in routes if route.role == "hidden" and p.ndim == 2]
        chosen = {id(p) for p in hidden}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self.optimizers = [torch.optim.Muon(hidden, lr=1e-3, ns_steps=1), torch.optim.AdamW(rest, lr=1e-3, fused=True)]
        self.state = {}

    def step(self) -> None:
        """Step both."""
        for optimizer in self.optimizers:
            optimizer.step()
            self.state |= optimizer.state


def _ours(method: str, **options: Any) -> Callable[[nn.Module], Any]:
    def build(model: nn.Module) -> Any:
        # One iteration of the orthogonalisation allocates what six do, and is counted six times faster.
        given = {"on_nonfinite": "ignore", "orthogonalizer_steps": 1, **options}
        optimizer = lightning_gluon.Gluon(model, lr=1e-3, method=method, **given)
        optimizer.two_point = "loop"  # `train` takes the second gradient
        return optimizer

    return build


ROWS: dict[str, Callable[[nn.Module], Any]] = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True),
    "torch Muon + AdamW": Pair,
    "gluon": _ours("gluon"),
    **{f"gluon-mvr1, {kind}": _ours("gluon-mvr1", reference=kind) for kind in ("copy", "step", "step8")},
    **{
        f"limuon r={rank}, {kind}": _ours("limuon", rank=rank, reference=kind)
        for rank in (8, 16, 64)
        for kind in ("copy", "step", "step8")
    },
    **{
        f"gluon-lowrank r={rank}, {feedback}": _ours("gluon-lowrank", rank=rank, feedback=feedback)
        for rank in (4, 8, 16, 64)
        for feedback in (None, "int8", "int4")
    },
    "gluon-lowrank r=16, bf16": _ours("gluon-lowrank", factor_dtype="bfloat16"),
    **{name: _ours(name) for name in ("gluon-nesterov", "gluon-lookahead")},
    **{name: _ours(name, total_steps=1000) for name in ("gluon-ema-nesterov", "gluon-anchor")},
    **{name: _ours(name, total_steps=1000) for name in ("gluon-dual", "muon-dual", "gluon-mix")},
    "limuon r=16, step, fold": _ours("limuon", rank=16, reference="step", fold=True),
    "limuon r=16, step8, fold": _ours("limuon", rank=16, reference="step8", fold=True),
    "limuon r=16, step, fold bf16": _ours("limuon", rank=16, reference="step", fold="bfloat16"),
    "limuon r=16, step8, fold bf16": _ours("limuon", rank=16, reference="step8", fold="bfloat16"),
}


def train(model: nn.Module, optimizer: Any, loss: Callable[[nn.Module], Tensor]) -> None:
    """Take one step as Lightning does it: the second gradient is collected beside the first, or folded into it."""
    for parameter in model.parameters():
        parameter.grad = None
    loss(model).backward()
    if getattr(optimizer, "needs_reference", False):
        if any(group.get("fold") for group in optimizer.param_groups):
            with optimizer.at_reference(), optimizer.folding():
                loss(model).backward()
        else:
            held = {parameter: parameter.grad for parameter in model.parameters()}
            for parameter in held:
                parameter.grad = None
            with optimizer.at_reference():
                loss(model).backward()
            optimizer.reference_gradients = {parameter: parameter.grad for parameter in held}
            for parameter, gradient in held.items():
                parameter.grad = gradient
            del held, gradient
    optimizer.step()


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of all tensors in an optimizer's state."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextlib.contextmanager
def counting() -> Iterator[LiveBytes]:
    """Fake tensors, counted, on a GPU as well as on a CPU."""
    with fake_gpu(), LiveBytes() as live:
        yield live


def measure_step(model_name: str, row: str, device: str) -> dict[str, Any]:
    """Return the peak of one row's step by itself, gradients given: chunks of a GPU are larger than those of a CPU.

    Backward passes on fake tensors need a device.
    """
    with torch.device("meta"):
        model = MODELS[model_name][0]()
    with counting() as live:
        model = model.to_empty(device=device)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
            live.add(parameter)
        optimizer = ROWS[row](model)
        for _ in range(2):
            optimizer.step()
        live.peak = live.live
        optimizer.step()
        count = sum(parameter.numel() for parameter in model.parameters())
        between, peak = live.live / count, live.peak / count
    return {"device": device, "parameters": count, "between_steps": between, "step_peak": peak}


def measure(model_name: str, row: str, batch: int) -> dict[str, Any]:
    """Return one row's bytes."""
    build, build_loss, size = MODELS[model_name]
    with torch.device("meta"):
        model = build()
    with counting() as live:
        model, loss = model.to_empty(device="cpu"), build_loss(batch, size)
        if hasattr(model, "tie_weights"):  # `to_empty` gives tied names tensors of their own
            model.tie_weights()
        for tensor in (*model.parameters(), *model.buffers()):
            live.add(tensor)
        optimizer = ROWS[row](model)
        predicted = optimizer.memory() if hasattr(optimizer, "memory") else None
        for _ in range(2):
            train(model, optimizer, loss)
        live.peak = live.live
        train(model, optimizer, loss)
        count = sum(parameter.numel() for parameter in model.parameters())
        return {
            "parameters": count,
            "state_bytes_per_parameter": state_bytes(optimizer) / count,
            "predicted_bytes_per_parameter": predicted and predicted["bytes_per_parameter"],
            "peak_bytes": live.peak,
        }


def methods() -> dict[str, Callable[[nn.Module], Any]]:
    """Return every method with its defaults."""
    found = {}
    for name, method in lightning_gluon.METHODS.items():
        length = {"total_steps": 1000} if method.needs_length else {}
        options = {**length, **ASKED.get(name, {})}
        found[name] = partial(lightning_gluon.Gluon, lr=1e-3, method=name, **options)
    return found


def persistent(model_name: str) -> dict[str, float]:
    """Return every row's persistent bytes per parameter, from shapes alone: the model stays on the meta device."""
    with torch.device("meta"):
        model = MODELS[model_name][0]()
    count = sum(parameter.numel() for parameter in model.parameters())
    result = {}
    for name, build in {**methods(), **ROWS}.items():
        optimizer = build(model)
        if isinstance(optimizer, Pair):
            numels = [sum(p.numel() for g in some.param_groups for p in g["params"]) for some in optimizer.optimizers]
            result[name] = (4 * numels[0] + 8 * numels[1]) / count
        else:
            result[name] = optimizer.memory()["bytes_per_parameter"] if hasattr(optimizer, "memory") else 8.0
    return result


def show(model: str, batch: int, rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Print a table of one model and batch."""
    table = Table(title=f"{model}, batch {batch}: bytes per parameter")
    for column in ("row", "state", "predicted", "peak GB", "below AdamW", "below Muon"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for name, row in rows.items():
        below = [(rows[base]["peak_bytes"] - row["peak_bytes"]) / row["parameters"] for base in list(ROWS)[:2]]
        predicted = row["predicted_bytes_per_parameter"]
        table.add_row(
            name,
            f"{row['state_bytes_per_parameter']:.3f}",
            "" if predicted is None else f"{predicted:.3f}",
            f"{row['peak_bytes'] / 1e9:.3f}",
            *(f"{value:+.2f}" for value in below),
        )
    console.print(table)


def main() -> None:
    """Count, append rows, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_s", "qwen2_5"], choices=list(MODELS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory.jsonl"))
    parser.add_argument("--step", choices=("cpu", "cuda"), help="only the step, as it is on this device")
    parser.add_argument("--persistent", action="store_true", help="only the state, from shapes, for all models")
    arguments = parser.parse_args()
    names = list(dict.fromkeys([*list(ROWS)[:2], *arguments.rows]))
    console, journal = Console(), Journal(arguments.output)
    if arguments.persistent:
        for model in MODELS:
            for row, value in persistent(model).items():
                console.print(journal.append("persistent", model=model, row=row, bytes_per_parameter=value))
        return
    for model in arguments.models if arguments.step else ():
        for name in names:
            console.print(journal.append("step", model=model, row=name, **measure_step(model, name, arguments.step)))
    for model in () if arguments.step else arguments.models:
        for batch in BATCHES[model]:
            rows = {}
            for name in names:
                rows[name] = journal.append("run", model=model, batch=batch, row=name, **measure(model, name, batch))
            show(model, batch, rows, console)


if __name__ == "__main__":
    main()
