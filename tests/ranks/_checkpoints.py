"""Checkpoints of torch and of Lightning over ranks: saved on some, loaded on others."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lightning_gluon import Gluon
from tests.ranks._gradients import Case, optimizer_of, run
from tests.ranks._layouts import build, spread, whole
from tests.ranks._training import Run, fit


def resumed(case: Case, strategy: str, full: bool) -> dict[str, Any]:
    """Go on from a state of torch.distributed.checkpoint, and beside it without one.

    Returns:
        Parameters that differ in the end, and the kinds of tensors in the state.
    """
    net, optimizer = made(case, strategy)
    run(net, optimizer, 0, 3)
    saving = StateDictOptions(full_state_dict=full, cpu_offload=full)
    loading = StateDictOptions(full_state_dict=full, cpu_offload=full, broadcast_from_rank0=full)
    state = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=saving))
    kinds = {type(value).__name__ for kept in state.get("state", {}).values() for value in kept.values()}
    other, second = made(case, strategy)
    other.load_state_dict(net.state_dict())
    set_optimizer_state_dict(other, second, state, options=loading)
    run(net, optimizer, 3, 2)
    run(other, second, 3, 2)
    pairs = zip(net.named_parameters(), other.parameters(), strict=True)
    differing = [name for (name, one), two in pairs if not torch.equal(whole(one), whole(two))]
    return {"differing": differing, "kinds": sorted(kinds)}


def made(case: Case, strategy: str) -> tuple[torch.nn.Module, Gluon]:
    net = build(case.model)
    given = spread(net, strategy)
    return net, optimizer_of(net, case, **given)


def fit_and_save(training: Run, folder: str) -> dict[str, np.ndarray]:
    """Train, and save after every step."""
    return fit(training, [ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)])
