"""The compiled step of a GPU without one: Dynamo takes it whole from fake CUDA tensors, and it becomes Triton kernels.

Nothing is run. The compiler is told of a device that is not there, and stops when the code is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lightning_gluon

triton = pytest.importorskip("triton")

HOPPER = SimpleNamespace(
    name="a GPU", major=9, minor=0, total_memory=2**37, multi_processor_count=132, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=2**25, gcnArchName="", uuid="0", is_integrated=0, is_multi_gpu_board=0,
)  # fmt: skip
DEVICE = {
    "torch.cuda.is_available": lambda: True,
    "torch.cuda.device_count": lambda: 1,
    "torch.cuda.current_device": lambda: 0,
    "torch.cuda.get_device_properties": lambda *_: HOPPER,
    "torch.cuda._get_device_properties": lambda *_: HOPPER,
    "torch.cuda._lazy_init": lambda: None,
    "torch.cuda.synchronize": lambda *_: None,
    "torch.cuda.current_stream": lambda *_: SimpleNamespace(cuda_stream=0),
    "torch._C._cuda_getDeviceCount": lambda: 1,
    "torch._C._cuda_getCurrentRawStream": lambda *_: 0,
    "torch._inductor.scheduler.has_triton": lambda: True,
}


class Driver:
    """What Triton asks of a device when code is written, not run."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def is_active(self) -> bool:
        return True


class Written(Exception):
    """The code is there."""


@contextmanager
def device_at_hand() -> Iterator[None]:
    from triton.runtime import driver

    with ExitStack() as stack:
        for name, answer in DEVICE.items():
            stack.enter_context(mock.patch(name, answer, create=True))
        stack.enter_context(mock.patch.object(type(driver), "active", Driver(), create=True))
        yield


def written_code(net: nn.Module, **options: Any) -> str:
    """Return the code that inductor writes for a compiled step of a network on a fake GPU."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    fake, found, compile_ = FakeTensorMode(allow_non_fake_inputs=True), [], torch.compile

    def lower(graph: torch.fx.GraphModule, inputs: list[Any], **_: Any) -> Any:
        with device_at_hand(), config.patch(compile_threads=1):
            lowering = GraphLowering(graph, example_inputs=inputs, is_inference=True)
            with DebugContext(), V.set_graph_handler(lowering), V.set_fake_mode(fake):
                lowering.run(*inputs)
                found.append(lowering.codegen()[0].value)
        raise Written

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        # Both passes would compute constants on the device.
        no_tracing = mock.patch("torch.fx.experimental.proxy_tensor.CONSTANT_NUMEL_LIMIT", 0)
        with no_tracing, config.patch(joint_graph_constant_folding=False):
            return compile_fx(graph, inputs, inner_compile=lower)

    def compiled(function: Any, **_: Any) -> Any:
        return compile_(function, backend=backend, dynamic=False, fullgraph=True)

    torch._dynamo.reset()
    with fake, mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)):
        net = net.to_empty(device="cuda")
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer = lightning_gluon.Gluon(net, lr=0.1, on_nonfinite="ignore", compile=True, **options)
        with mock.patch("torch.compile", compiled), pytest.raises(Exception, match="Written"):
            optimizer.step()
    torch._dynamo.reset()
    return found[0]


def test_the_step_of_a_gpu_is_one_graph_of_triton_kernels() -> None:
    tall = nn.Linear(16, 32, device="meta")  # its matrix lies transposed in its stack
    code = written_code(tall, orthogonalizer_steps=2)
    assert code.count("@triton.jit") >= 3
    assert len(re.findall(r"extern_kernels\.\w*mm", code)) >= 5  # the products
    assert "fp16" in code and "fp64" not in code
