"""Groups that are added while training: named apart, and moved together by whoever added them."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import lightning_gluon
from lightning_gluon import Gluon, configure_optimizers
from lightning_gluon.step.late import follow_family
from tests import _models as models


class Tuned(L.LightningModule):
    """A backbone that is frozen at first, under a head."""

    def __init__(self, schedule: str = "constant", method: str = "gluon") -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        self.schedule, self.method = schedule, method
        self.rates: list[list[float]] = []

    def training_step(self, batch: tuple, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0]).tanh()), batch[1])

    def train_dataloader(self) -> DataLoader:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=4)

    def configure_optimizers(self) -> object:
        return configure_optimizers(self, self.method, lr=0.02, schedule=self.schedule)

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def fit(folder: Path, module: Tuned, *, epochs: int = 5, checkpoint: str | None = None) -> Tuned:
    tuning = BackboneFinetuning(2, lambda epoch: 2.0, backbone_initial_lr=0.001, should_align=False)
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    L.Trainer(max_epochs=epochs, callbacks=[tuning, save], logger=False, accelerator="cpu", devices=1,
              default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
              ).fit(module, ckpt_path=checkpoint, weights_only=False)  # fmt: skip
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", ["constant", "theory"])
def test_all_of_a_backbone_follows_the_rate_of_the_last_group(tmp_path: Path, schedule: str) -> None:
    """Lightning raises the learning rate of `param_groups[-1]` alone: .001, then .002, .004 of the head's .02."""
    module = fit(tmp_path, Tuned(schedule))
    count = len(module.rates[0])
    late = [row[count:] for row in module.rates]
    assert [len(row) for row in late] == [0] * 4 + [2] * 6
    assert all(row[0] == row[1] for row in late[4:])
    if schedule == "constant":
        assert [row[0] for row in late[4::2]] == pytest.approx([0.001, 0.002, 0.004])
        assert all(row[:count] == [0.02] * count for row in module.rates)


@pytest.mark.filterwarnings("ignore")
def test_rates_of_a_resumed_run_are_those_of_the_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = fit(tmp_path, Tuned())
    torch.manual_seed(0)
    resumed = fit(tmp_path, Tuned(), checkpoint=str(tmp_path / "epoch=3.ckpt"))
    # Lightning leaves the backbone frozen in a run that is resumed after it was unfrozen, under any optimizer.
    assert resumed.rates == whole.rates[-len(resumed.rates) :]


def late() -> tuple[Gluon, nn.Module]:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    optimizer = Gluon(net, lr=0.1)
    net[0].requires_grad_(True)
    return optimizer, net


def step(optimizer: Gluon, net: nn.Module) -> list[float]:
    net.zero_grad()
    net(torch.ones(1, 4)).square().sum().backward()
    optimizer.step()
    return [group["lr"] for group in optimizer.param_groups]


def test_schedulers_of_torch_from_before_and_after() -> None:
    optimizer, net = late()
    before = ExponentialLR(optimizer, 0.5)
    step(optimizer, net)
    optimizer.add_param_group({"params": list(net[0].parameters()), "lr": 0.01})
    optimizer.param_groups[-1]["lr"] = 0.02
    assert step(optimizer, net)[-2:] == [0.02, 0.02]
    before.step()
    assert step(optimizer, net)[-2:] == [0.01, 0.01]
    LambdaLR(optimizer, lambda epoch: 0.5)
    assert step(optimizer, net) == [0.05, 0.05, 0.005, 0.005]


def test_families_survive_a_state_and_do_not_mix() -> None:
    optimizer, net = late()
    optimizer.add_param_group({"params": list(net[0].parameters()), "lr": 0.01})
    other = nn.Linear(3, 3)
    with pytest.warns(UserWarning, match="came without their module"):
        optimizer.add_param_group({"params": list(other.parameters())})
    families = [group.get("family") for group in optimizer.param_groups]
    assert families == [None, None, *[families[2]] * 2, *[families[4]] * 2] and families[2] != families[4]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[-1]["lr"] = 0.5
    assert step(optimizer, net)[2:] == [0.01, 0.01, 0.5, 0.5]


@pytest.mark.parametrize(("rates", "expected"), [
    ((0.1, 0.1, 0.1), 0.1),
    ((0.2, 0.1, 0.1), 0.2),  # one was set by hand
    ((0.05, 0.05, 0.4), 0.4),  # a schedule moved all, then a callback the last
    ((0.05, 0.05, 0.05), 0.05),
])  # fmt: skip
def test_the_last_change_counts(rates: tuple[float, ...], expected: float) -> None:
    members = [{"family": "a", "family_lr": 0.1, "lr": lr} for lr in rates]
    follow_family([{"lr": 1.0}, *members])
    assert [group["lr"] for group in members] == [expected] * 3


def test_a_refused_late_group_leaves_nothing_behind() -> None:
    optimizer, net = late()
    groups = list(optimizer.param_groups)
    with pytest.raises(ValueError, match=r"'1.weight' is given twice"):
        optimizer.add_param_group({"params": [net[0].bias, net[1].weight]})
    assert optimizer.param_groups == groups


def test_late_groups_are_completed_routed_and_renamed() -> None:
    net = models.network()
    for p in net[2].parameters():
        p.requires_grad = False
    optimizer = Gluon(lightning_gluon.partition(net), lr=0.02, weight_decay=0.1)
    for p in net[2].parameters():
        p.requires_grad = True
    optimizer.add_param_group({"params": list(net[2].parameters()), "lr": 0.005})  # as BackboneFinetuning does
    added = [group for group in optimizer.param_groups if group["lr"] == 0.005]
    assert {group["name"] for group in added} == {"hidden_2", "bias_2"}
    assert all(group["weight_decay"] == 0.1 for group in added)
    assert {name for group in added for name in group["param_names"]} == {"2.weight", "2.bias"}
    models.backward(net, 0)
    optimizer.step()
    assert len(optimizer.state) == len(list(net.parameters()))
