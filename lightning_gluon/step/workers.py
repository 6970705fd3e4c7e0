"""Workers that send each other messages: what they have to agree on, and what each keeps for itself.

Replicas stay equal if all workers take the same direction, over the same entries, in the same steps. Momentum and sum
of messages are a worker's own (`worker_state`), so a checkpoint gathers them from all (`load_worker_states_`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lightning_gluon.estimators.messages import Exchange
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.options import Group
from lightning_gluon.step.advance import Signal
from lightning_gluon.step.finite import SKIP

if TYPE_CHECKING:
    from torch.distributed import GradBucket

WorkerState: TypeAlias = dict[str, dict[str, Tensor]]  # by parameter name, then by buffer


def check_exchange(groups: Sequence[Group], exchange: Exchange) -> None:
    """Raise unless there are as many workers as the groups say.

    Args:
        groups: Complete groups.
        exchange: The exchange of the optimizer.

    Raises:
        RuntimeError: If there are more or fewer.
    """
    for group in groups:
        workers = group["workers"] if ESTIMATORS[group["estimator"]].messages else exchange.size
        if workers != exchange.size:
            raise RuntimeError(
                f"Group {group['name']!r} has `workers`={workers}, but the optimizer's `exchange` has {exchange.size}. "
                "Set `optimizer.exchange` and pass the number of its workers as `workers`."
            )


def check_messages(groups: Sequence[Group], compile_: bool | str) -> None:
    """Raise if a group whose estimator sends messages cannot.

    Args:
        groups: Complete groups.
        compile_: Whether the step is compiled.

    Raises:
        ValueError: If the step is compiled, or several workers would round the same sums differently.
    """
    for group in groups:
        if not ESTIMATORS[group["estimator"]].messages:
            continue
        where = f"of group {group['name']!r}"
        if compile_:
            raise ValueError(
                f"Expected no `compile` with estimator {group['estimator']!r} {where}, which sends messages between "
                "the parts of a step. Leave `compile` out."
            )
        if group["workers"] > 1 and group["momentum_dtype"] is not None:
            raise ValueError(
                f"Expected `momentum_dtype` {where} to be None with several workers, but got "
                f"{group['momentum_dtype']!r}: their sums would drift apart. Leave it out."
            )


def agreed_norms(exchange: Exchange, check: Callable[[], Tensor | None]) -> Tensor | None:
    """Return the norms of this worker's gradients; raise on every worker if one of them has to.

    Args:
        exchange: The exchange.
        check: Returns the norms, or raises.

    Raises:
        FloatingPointError: If a gradient of any worker is not finite, or too large.
    """
    if exchange.size == 1:
        return check()
    try:
        norms, error = check(), None
    except FloatingPointError as raised:
        norms, error = None, str(raised)
    failed = exchange.failure(error)
    if failed is not None:
        raise FloatingPointError(failed)
    return norms


def keep_own_gradients(groups: Sequence[Group]) -> Callable[[Any, GradBucket], Future[Tensor]]:
    """Return a communication hook for DDP: gradients that are sent as messages stay each rank's own.

    All others are averaged over the ranks, as DDP does by itself. It works on any device.

    Args:
        groups: Complete groups.

    Returns:
        A hook for `ddp.register_comm_hook(process_group, hook)`; its state is the process group.
    """
    own: set[Tensor] = set()
    for group in groups:
        if ESTIMATORS[group["estimator"]].messages:
            own.update(group["params"])

    def hook(process_group: Any, bucket: GradBucket) -> Future[Tensor]:
        pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
        shared = [gradient for parameter, gradient in pairs if parameter not in own]
        if shared:
            _average_(shared, process_group)
        future: Future[Tensor] = Future()
        future.set_result(bucket.buffer())
        return future

    hook.__annotations__ = {"bucket": dist.GradBucket, "return": Future[Tensor]}  # torch reads no strings there
    return hook


def _average_(tensors: list[Tensor], process_group: Any) -> None:
    """Replace tensors by their means over the ranks, in one collective."""
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    joined /= dist.get_world_size(process_group)
    dist.all_reduce(joined, group=process_group)
    parts = joined.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])


def agreed_skip(groups: Sequence[Group], exchange: Exchange, skip: bool) -> bool:
    """Return whether any worker skips the step, where groups may skip one.

    Args:
        groups: Complete groups.
        exchange: The exchange.
        skip: Whether this worker does.
    """
    if exchange.size == 1 or all(group["on_nonfinite"] != SKIP for group in groups):
        return skip
    (found,) = exchange.any([torch.tensor([skip])])
    return bool(found)


def agreed_signal(exchange: Exchange, signal: Signal | None) -> Signal | None:
    """Return where a gradient is more than rounding noise for any worker.

    Args:
        exchange: The exchange.
        signal: 0 where this worker finds noise, 1 elsewhere; `None` for what is not judged.
    """
    if exchange.size == 1 or signal is None:
        return signal
    judged = [own for own in signal if own is not None]
    heard = iter(exchange.any([own > 0 for own in judged]))
    return [own if own is None else next(heard).to(own.dtype) for own in signal]


def worker_state(groups: Sequence[Group], state: Mapping[Tensor, Mapping[str, Any]]) -> WorkerState:
    """Return the buffers that differ from worker to worker, by the name of the parameter.

    Args:
        groups: Complete groups.
        state: The optimizer's state, by parameter.

    Returns:
        The tensors themselves.

    Example:
        >>> from lightning_gluon import Gluon
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> layer.weight.grad = torch.eye(2)
        >>> optimizer = Gluon(layer, method="ef21-muon")
        >>> optimizer.step()
        >>> list(worker_state(optimizer.param_groups, optimizer.state)["weight"])
        ['momentum', 'sent']
    """
    found: WorkerState = {}
    for group in groups:
        estimator = ESTIMATORS[group["estimator"]]
        if not estimator.messages:
            continue
        own = [name for name in estimator.buffers if name not in estimator.messages[1:]]
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            kept = state.get(parameter, {})
            found[name] = {key: kept[key] for key in own if key in kept}
    return found


def load_worker_states_(
    groups: Sequence[Group],
    state: MutableMapping[Tensor, dict[str, Any]],
    saved: Sequence[WorkerState],
    exchange: Exchange,
) -> None:
    """Give a worker its own buffers back, after the state that all share was loaded.

    If the number of workers has changed, every worker takes the mean of the saved momenta, and sends it in full.

    Args:
        groups: Complete groups.
        state: The optimizer's state, by parameter.
        saved: Result of `worker_state` of every worker that saved.
        exchange: The exchange of the workers now.
    """
    same = len(saved) == exchange.size
    for group in groups:
        messages = ESTIMATORS[group["estimator"]].messages
        if not messages:
            continue
        group["workers"] = exchange.size
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            own = state[parameter]
            if same:
                kept = saved[exchange.rank][name]
                own.update({key: value.to(parameter.device, copy=True) for key, value in kept.items()})
                continue
            for key in messages:
                own.pop(key, None)
            momenta = [worker[name] for worker in saved]
            for key in momenta[0].keys() - set(messages):
                own[key] = torch.stack([worker[key] for worker in momenta]).mean(0).to(parameter.device)
