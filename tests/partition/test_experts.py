"""Stacked experts: the matrices of the partition against the module's own forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gluon.partition import partition
from tests.partition._stand_ins import no_biases_

transformers = pytest.importorskip("transformers")


def clipped_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Activation of gpt-oss."""
    gate = gate.clamp(max=7)
    return (up.clamp(-7, 7) + 1) * gate * torch.sigmoid(1.702 * gate)


def experts(kind: str, module: str) -> nn.Module:
    cfg = getattr(transformers, f"{kind}Config")(hidden_size=6, intermediate_size=10, num_local_experts=3)
    cfg._experts_implementation = "eager"
    cls = getattr(__import__(f"transformers.models.{module}.modeling_{module}", fromlist=["x"]), f"{kind}Experts")
    return no_biases_(cls(cfg))


@pytest.mark.parametrize("stacked", ["mixtral", "gpt_oss"])
def test_stacked_experts(stacked: str) -> None:
    """One expert by hand, from the matrices of the partition, against the module's own forward."""
    torch.manual_seed(0)
    x, chosen = torch.randn(4, 6), torch.ones(4, 1, dtype=torch.long)
    if stacked == "mixtral":
        module, activation = experts("Mixtral", "mixtral"), lambda gate, up: F.silu(gate) * up
    else:
        module, activation = experts("GptOss", "gpt_oss"), clipped_swiglu
    p = partition(module)
    gate, up = (view.gather(module.gate_up_proj.data)[1] for view in p.route("gate_up_proj").views)
    down = p.route("down_proj").views[0].gather(module.down_proj.data)[1]
    assert p.views("gate_up_proj") == [(10, 6)] * 6 and p.views("down_proj") == [(6, 10)] * 3
    expected = activation(x @ gate.T, x @ up.T) @ down.T
    torch.testing.assert_close(module(x, chosen, torch.ones(4, 1)), expected, rtol=1e-4, atol=1e-4)
    for name in p.routes:
        assert p.role(name) == ("bias" if name.endswith("bias") else "hidden")


def test_llama4_experts_are_stored_transposed() -> None:
    from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

    module = no_biases_(
        Llama4TextExperts(transformers.Llama4TextConfig(hidden_size=6, intermediate_size=5, num_local_experts=2))
    )
    p, x = partition(module), torch.randn(2, 3, 6)
    gate, up = (view.gather(module.gate_up_proj.data) for view in p.route("gate_up_proj").views)
    down = p.route("down_proj").views[0].gather(module.down_proj.data)
    expected = (up @ x.mT * F.silu(gate @ x.mT)).mT @ down.mT
    torch.testing.assert_close(module(x.reshape(-1, 6)), expected.reshape(-1, 6), rtol=1e-4, atol=1e-4)


def test_dbrx_experts_in_one_flat_array() -> None:
    from transformers.models.dbrx.modeling_dbrx import DbrxExpertGLU

    config = transformers.models.dbrx.configuration_dbrx.DbrxFFNConfig(ffn_hidden_size=5, moe_num_experts=2)
    config.hidden_size = 6
    module = no_biases_(DbrxExpertGLU(config))
    p, x = partition(module), torch.randn(3, 6)
    w1, v1, w2 = (p.route(name).views[0].gather(p.parameter(name).data)[1] for name in ("w1", "v1", "w2"))
    raw = [p.parameter(name).data.view(2, 5, 6)[1] for name in ("w1", "v1", "w2")]
    torch.testing.assert_close(module(x, *raw), (F.silu(x @ w1.T) * (x @ v1.T)) @ w2.T)
    assert p.views("w2") == [(6, 5)] * 2
