"""The examples run on two ranks as their docstrings say, and both end where one process does."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from torch import Tensor
from torch.nn.functional import mse_loss

from examples.raw_torch import batches, network
from lightning_gluon import Gluon
from tests._two_point import free_port

STEPS = 6
CLOSE = 0.02  # relative; LMOs in 16 bits amplify the order of sums; measured: 2e-3


def alone(method: str) -> list[float]:
    """Return the losses of one process."""
    net, losses = network(), []
    optimizer = Gluon(net, lr=0.02, method=method)
    for x, y in batches(STEPS, 1, 0):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = mse_loss(net(x), y)  # noqa: B023
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


def printed(command: list[str]) -> list[float]:
    """Run a command and return the losses that it prints."""
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    given |= {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env={**os.environ, **given}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = re.findall(r"loss ([\d.]+) -> ([\d.]+)", done.stdout)
    return [float(one) for one in found]


@pytest.mark.parametrize("method", ["gluon-mvr1", pytest.param("muon", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
@pytest.mark.parametrize("kind", ["raw", "fabric"])
def test_an_example_trains_on_two_ranks(kind: str, strategy: str, method: str) -> None:
    options = ["--strategy", strategy, "--method", method, "--steps", str(STEPS)]
    if kind == "raw":
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # keeps its port
        command = [sys.executable, *start, "-m", "examples.raw_torch", *options]
    else:
        command = [sys.executable, "-m", "examples.fabric_ranks", "--accelerator", "cpu", *options]
    found, expected = printed(command), alone(method)
    assert found == pytest.approx([expected[0], expected[-1]], rel=CLOSE)
