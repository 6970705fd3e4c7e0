"""Singular values of real momenta, for tests: a language model on Python's own source, and a ViT on digits.

Both train with `gluon` for a few hundred steps. The momentum of every hidden matrix is decomposed at the start, in the
middle and at the end. The file holds singular values relative to the largest, since an orthogonaliser sees little else.

    python -m benchmarks.momenta --output tests/norms/momenta.json
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import lightning_gluon

STEPS = 200
RECORDED = (1, 80, STEPS - 1)
Task = tuple[nn.Module, Callable[[], Tensor]]


def language(batch: int = 8, length: int = 128) -> Task:
    """Return a Qwen2 of width 192 with 3 layers, and its loss on bytes of the standard library."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"))[:60]
    content = b"".join(file.read_bytes() for file in files)
    text = torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def loss() -> Tensor:
        starts = torch.randint(len(text) - length - 1, (batch,)).tolist()
        tokens = torch.stack([text[start : start + length + 1] for start in starts]).long()
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return model, loss


def vision(batch: int = 32) -> Task:
    """Return a ViT of width 192 with 2 layers, and its loss on the digits of scikit-learn."""
    from sklearn.datasets import load_digits
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=8, patch_size=2, in_chans=1, embed_dim=192, depth=2, num_heads=3, num_classes=10)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)

    def loss() -> Tensor:
        chosen = torch.randint(len(images), (batch,))
        return nn.functional.cross_entropy(model(images[chosen]), labels[chosen])

    return model, loss


def record(task: Task) -> list[list[float]]:
    """Train, and return the relative singular values of every hidden momentum at the recorded steps."""
    model, loss = task
    optimizer = lightning_gluon.Gluon(model, lr=0.02)
    hidden = [(route, weight) for route, weight in lightning_gluon.partition(model) if route.role == "hidden"]
    momenta = {route.name: torch.zeros_like(weight) for route, weight in hidden}
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        for route, weight in hidden:
            momenta[route.name].lerp_(weight.grad, 0.1 if step else 1.0)
        if step in RECORDED:
            print(step, value.item())
            for route, _ in hidden:
                for view in route.views:
                    matrices = view.gather(momenta[route.name]).double()
                    values = torch.linalg.svdvals(matrices)
                    relative = values / values[:, :1]
                    found += [[float(f"{entry:.4g}") for entry in row] for row in relative.tolist()]
        optimizer.step()
    return found


def main() -> None:
    """Train both, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("tests/norms/momenta.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spectra = {"language": record(language()), "vision": record(vision())}
    lines = [f'"{name}": {json.dumps(rows, separators=(",", ":"))}' for name, rows in spectra.items()]
    arguments.output.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
