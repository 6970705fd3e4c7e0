"""Sources of parameters: the module is found where it can be, names count, and what is left says so once."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader

from lightning_gluon import Gluon
from lightning_gluon.step.sources import module_behind
from tests import _models as models


class Language(nn.Module):
    """A table, a body and an output layer: three roles that shapes cannot tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.lm_head = nn.Linear(8, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.body(self.embed(x)))


def roles(optimizer: Gluon) -> dict[str, str]:
    return {layer.name: layer.role for layer in optimizer.layers()}


GENERATORS: dict[str, Callable[[nn.Module], object]] = {
    "parameters": lambda net: net.parameters(),
    "named_parameters": lambda net: net.named_parameters(),
    "expression": lambda net: (p for p in net.parameters() if p.requires_grad),
    "named expression": lambda net: ((n, p) for n, p in net.named_parameters()),
    "filter": lambda net: filter(lambda p: p.requires_grad, net.parameters()),
}


@pytest.mark.parametrize("form", GENERATORS)
def test_a_module_is_found_behind_its_own_parameters(form: str) -> None:
    net = Language()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Gluon(GENERATORS[form](net), lr=0.1)
    assert roles(found) == roles(Gluon(net, lr=0.1))


def test_a_partial_as_hydra_makes_it_finds_the_module() -> None:
    net = Language()
    build = functools.partial(Gluon, lr=0.1, method="muon")
    assert roles(build(params=net.parameters()))["lm_head.weight"] == "head"


def test_the_stock_command_line_finds_the_module(tmp_path: Path) -> None:
    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Language()

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.net(batch).square().mean()

        def train_dataloader(self) -> DataLoader:
            return DataLoader(torch.arange(4), batch_size=4)

    arguments = ["fit", "--optimizer=lightning_gluon.Gluon", "--optimizer.lr=0.1", "--trainer.max_steps=1",
                 "--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.accelerator=cpu",
                 "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
                 f"--trainer.default_root_dir={tmp_path}"]  # fmt: skip
    command = LightningCLI(Module, args=arguments, save_config_callback=None)
    found = roles(command.trainer.optimizers[0])
    assert (found["net.lm_head.weight"], found["net.embed.weight"]) == ("head", "embedding")


def test_frozen_parameters_are_kept_as_torch_keeps_them() -> None:
    net = Language()
    net.embed.weight.requires_grad_(False)
    assert "embed.weight" in roles(Gluon(net.parameters(), lr=0.1))


def test_names_are_evidence() -> None:
    with pytest.warns(UserWarning, match=r"4 of the given parameters came without .* by name and shape: .* the module"):
        found = roles(Gluon(list(Language().named_parameters()), lr=0.1))
    assert (found["embed.weight"], found["lm_head.weight"]) == ("embedding", "head")
    assert found["body.0.weight"] == "hidden"


@pytest.mark.parametrize("given", ["list", "group", "late group"])
def test_shapes_alone_are_warned_about(given: str) -> None:
    net = Language()
    with pytest.warns(UserWarning, match=r"4 of the given parameters came without their module .* by shape:") as caught:
        if given == "late group":
            optimizer = Gluon([nn.Parameter(torch.ones(2))], lr=0.1)
            optimizer.add_param_group({"params": list(net.parameters())})
        else:
            Gluon(list(net.parameters()) if given == "list" else [{"params": list(net.parameters())}], lr=0.1)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_vectors_and_roles_are_nothing_to_warn_about() -> None:
    net = Language()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Gluon([net.lm_head.bias], lr=0.1)
        Gluon([{"params": [net.lm_head.weight], "role": "head"}], lr=0.1)


def test_a_generator_that_has_begun_hides_its_module() -> None:
    generator = nn.Linear(2, 2).parameters()
    next(generator)
    assert module_behind(generator) is None
    assert module_behind(x for x in range(3)) is None


def test_arrays_that_no_rule_fits_are_read_by_shape() -> None:
    arrays = nn.ParameterList([torch.ones(3, 3), torch.ones(3)])
    with pytest.warns(UserWarning, match="1 of the given parameters came without their module"):
        assert roles(Gluon(arrays.parameters(), lr=0.1)) == {"param_0": "hidden", "param_1": "bias"}


def test_two_parameters_of_one_name_keep_their_own_state() -> None:
    p, q = (nn.Parameter(torch.eye(3)) for _ in range(2))
    with pytest.warns(UserWarning, match="came without their module"):
        optimizer = Gluon([("w", p), ("w", q)], lr=0.1, method="gluon-mvr1")

    def closure() -> None:
        p.grad, q.grad = torch.full((3, 3), 1.0), torch.full((3, 3), 2.0)

    optimizer.step(closure)
    q.data.add_(1)
    before = {one: {key: value.clone() for key, value in optimizer.state[one].items()} for one in (p, q)}
    optimizer.load_state_dict(optimizer.state_dict())
    for one in (p, q):
        assert all(torch.equal(optimizer.state[one][key], value) for key, value in before[one].items())
    assert [layer.name for layer in optimizer.layers()] == ["w", "w_2"]


def test_groups_without_a_role_are_routed_by_shape_and_named_apart() -> None:
    net = models.network()
    groups = [{"params": net[0].parameters(), "lr": 0.1, "name": "stem"}, {"params": net[2].parameters()}]
    optimizer = Gluon([*groups, {"params": net[5].parameters()}], lr=0.02)
    assert [(g["name"], g["role"], g["norm"], g["lr"]) for g in optimizer.param_groups] == [
        ("stem-hidden", "hidden", "spectral", 0.1),
        ("stem-bias", "bias", "rms", 0.1),
        ("hidden", "hidden", "spectral", 0.02),
        ("bias", "bias", "rms", 0.02),
        ("hidden_2", "hidden", "spectral", 0.02),
        ("bias_2", "bias", "rms", 0.02),
    ]
    names = [layer.name for layer in optimizer.layers()]
    assert len(set(names)) == len(names)
