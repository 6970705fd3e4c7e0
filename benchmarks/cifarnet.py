"""CifarNet: three blocks of convolutions of widths 64, 256, 256, trained on a device that holds all of CIFAR-10.

    net       whitening-free: conv 2 x 2, then per block conv 3 x 3, max pool, batch norm, GELU, conv 3 x 3, batch norm,
              GELU; then max pool 3 and a linear map; about 2 M parameters
    data      mirrored and shifted by up to two pixels, batch 2,000, `epochs` times
    step      learning rate falls to zero in a line; labels smoothed by 0.2; bf16 autocast on CUDA

After the speedrun of K. Jordan, whose whitening, look-ahead and test-time augmentation are left out: an accuracy from
here stands beside a published one, and is no check of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
SHIFT = 2


@dataclass(frozen=True)
class Images:
    """Images of 32 x 32 as float in the units of the mean and deviation, with labels, all on one device."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def normalized(images: Tensor) -> Tensor:
    """Return `(n, 3, 32, 32)` bytes as floats of mean 0 and deviation 1."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Return two convolutions with a pool between."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
    )


def network(share: int = 1) -> nn.Sequential:
    """Return the network.

    Args:
        share: Divisor of the widths.
    """
    first, second, third = 64 // share, 256 // share, 256 // share
    stem = nn.Sequential(nn.Conv2d(3, 24, 2), nn.GELU())
    head = nn.Sequential(nn.MaxPool2d(3), nn.Flatten(), nn.Linear(third, 10))
    return nn.Sequential(stem, block(24, first), block(first, second), block(second, third), head)


def augmented(images: Tensor) -> Tensor:
    """Return images mirrored by chance and shifted by up to two pixels, each in its own way."""
    count, size = len(images), images.shape[-1]
    mirrored = torch.rand(count, 1, 1, 1, device=images.device) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    padded = functional.pad(images, [SHIFT] * 4, mode="reflect")
    rows, columns = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), device=images.device)
    line = torch.arange(size, device=images.device)
    number = torch.arange(count, device=images.device)[:, None, None]
    found = padded.permute(0, 2, 3, 1)[number, (rows + line)[:, :, None], (columns + line)[:, None, :]]
    return found.permute(0, 3, 1, 2)


def train(
    data: Images,
    optimizer_of: Callable[[nn.Module], Any],
    *,
    seed: int,
    epochs: int = 8,
    batch: int = 2000,
    share: int = 1,
) -> dict[str, Any]:
    """Train once.

    Args:
        data: The images.
        optimizer_of: Makes an optimizer, or several that are stepped together, for a network.
        seed: Seed of weights, order and augmentation.
        epochs: Passes over the data.
        batch: Images per step.
        share: Divisor of the widths.

    Returns:
        Test accuracy and loss, steps, and the last training loss.
    """
    torch.manual_seed(seed)
    device = data.train.device
    net = network(share).to(device, memory_format=torch.channels_last)
    optimizer = optimizer_of(net)
    parts = getattr(optimizer, "optimizers", [optimizer])
    rates = [[group["lr"] for group in part.param_groups] for part in parts]
    steps, done = epochs * (len(data.train) // batch), 0
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    for _ in range(epochs):
        order = torch.randperm(len(data.train), device=device)
        for chosen in order[: len(order) // batch * batch].split(batch):
            for part, own in zip(parts, rates, strict=True):
                for group, rate in zip(part.param_groups, own, strict=True):
                    group["lr"] = rate * (1 - done / steps)
            with autocast:
                logits = net(augmented(data.train[chosen]).contiguous(memory_format=torch.channels_last))
                loss = functional.cross_entropy(logits.float(), data.train_labels[chosen], label_smoothing=0.2)
            net.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
    accuracy, test_loss = test(net, data)
    return {"accuracy": accuracy, "test_loss": test_loss, "steps": steps, "train_loss": loss.item()}


@torch.no_grad()
def test(net: nn.Module, data: Images) -> tuple[float, float]:
    """Return accuracy and loss on the test images."""
    net.eval()
    logits = torch.cat([net(part.contiguous(memory_format=torch.channels_last)) for part in data.test.split(2000)])
    hits = (logits.argmax(1) == data.test_labels).float().mean()
    return hits.item(), functional.cross_entropy(logits, data.test_labels).item()
