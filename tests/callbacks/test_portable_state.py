"""Parameters in a checkpoint are numbered as the module orders them, and loading goes by names as before."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_gluon import Gluon
from lightning_gluon.callbacks.portable_state import PortableState
from tests._two_point import Net, SaveAt, differing, fit, gluon, state


def test_numbers_are_positions_in_the_module(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    model = Net(method="gluon")
    runner = fit(model, callbacks=[SaveAt(path, 0, 3)])
    assert sum(isinstance(callback, PortableState) for callback in runner.callbacks) == 1
    (saved,) = torch.load(path, weights_only=True)["optimizer_states"]
    names = [name for name, _ in model.named_parameters()]
    listed = [number for group in saved["param_groups"] for number in group["params"]]
    assert listed != sorted(listed)  # groups are roles, in another order
    for group in saved["param_groups"]:
        assert [names[number] for number in group["params"]] == group["param_names"]
    for number, kept in saved["state"].items():
        assert kept["momentum"].shape == model.get_parameter(names[number]).shape
    own = gluon(runner).state_dict()["param_groups"]
    assert [number for group in own for number in group["params"]] == list(range(len(names)))  # as torch expects


def test_training_goes_on_from_it(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    straight, resumed = Net(dropout=0.0, method="gluon-mvr1"), Net(dropout=0.0, method="gluon-mvr1")
    resumed.load_state_dict(straight.state_dict())
    one = fit(straight, max_epochs=2, callbacks=[SaveAt(path, 0, 6)])
    other = fit(resumed, max_epochs=2, ckpt_path=path)
    assert differing(state(straight, gluon(one)), state(resumed, gluon(other))) == []


def test_parameters_of_another_module_keep_their_numbers(tmp_path: Path) -> None:
    class Outside(Net):
        def configure_optimizers(self) -> Gluon:
            self.other = [torch.nn.Linear(8, 8)]  # in a list: no part of the module
            params = [*self.other[0].named_parameters(), *self.named_parameters()]
            PortableState.attach(self.trainer)
            return Gluon(params, lr=0.05)

    path = tmp_path / "saved.ckpt"
    fit(Outside(), callbacks=[SaveAt(path, 0, 3)])
    (saved,) = torch.load(path, weights_only=True)["optimizer_states"]
    listed = [number for group in saved["param_groups"] for number in group["params"]]
    assert listed == list(range(len(listed)))
