"""EF21 against its definition with several workers, its reductions, its bytes, and what a checkpoint keeps of it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Exchange, Gluon, run_workers
from lightning_gluon.step.workers import WorkerState, load_worker_states_, worker_state
from tests.estimators._replay import EXACT, LR, SHAPE, gap, gradient, lmo, optimizer_of, start, trained

WORKERS, STEPS, B, KEPT = 4, 8, 0.9, 6
TOP: dict[str, Any] = {"compressor": "top-k", "compressor_share": KEPT / 60}


def sample(step: int, rank: int, x: Tensor) -> Tensor:
    """Return the gradient of a worker's sample."""
    return gradient(100 * rank + step, x)


def top(x: Tensor) -> Tensor:
    return torch.where(x.abs() >= x.abs().flatten().sort().values[-KEPT], x, 0)


class Worker:
    """One worker of the matrix problem."""

    def __init__(self, exchange: Exchange, method: str, **options: Any) -> None:
        self.exchange, self.weight = exchange, nn.Parameter(start())
        self.optimizer = optimizer_of(self.weight, method, workers=exchange.size, **options)
        self.optimizer.exchange = exchange

    def walk(self, first: int, last: int) -> list[Tensor]:
        path = []
        for step in range(first, last):

            def closure(step: int = step) -> None:
                self.weight.grad = sample(step, self.exchange.rank, self.weight.detach())

            self.optimizer.step(closure)
            path.append(self.weight.detach().clone())
        return path

    def saved(self) -> tuple[dict, WorkerState]:
        own = worker_state(self.optimizer.param_groups, self.optimizer.state)
        file = io.BytesIO()
        torch.save((self.optimizer.state_dict(), own), file)
        file.seek(0)
        return torch.load(file, weights_only=True)


def walked(method: str, workers: int = WORKERS, **options: Any) -> list[list[Tensor]]:
    return run_workers(workers, lambda exchange: Worker(exchange, method, **options).walk(0, STEPS))


def replayed(advance: Callable[..., Tensor], compress: Callable[[Tensor], Tensor], workers: int) -> list[Tensor]:
    """Return the iterates of the definition; `advance(step, M_j, g, g_old)` is the worker's own momentum."""
    x = before = start()
    momenta = [sample(0, j, x) for j in range(workers)]
    sent = [m.clone() for m in momenta]
    estimate = torch.stack(momenta).mean(0)
    path = []
    for step in range(STEPS):
        for j in range(workers) if step else ():
            momenta[j] = advance(step, momenta[j], sample(step, j, x), sample(step, j, before))
            news = compress(momenta[j] - sent[j])
            sent[j], estimate = sent[j] + news, estimate + news / workers
        before, x = x, x - LR * lmo(estimate)
        path.append(x)
    return path


def ema(step: int, m: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return B * m + (1 - B) * new


def mvr(step: int, m: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return new + B * (m - old)


def sarah(step: int, m: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return new if step % 3 == 0 else m + new - old


CASES = [("ef21-muon", ema, {}), ("ef21-mvr-reading", mvr, {}), ("ef21-sarah-reading", sarah, {"sarah_restart": 3})]


@pytest.mark.parametrize(("method", "advance", "options"), CASES)
@pytest.mark.parametrize("workers", [1, WORKERS])
def test_replay_from_the_definition(method: str, advance: Callable, options: dict, workers: int) -> None:
    paths = walked(method, workers, **TOP, **options)
    assert gap(paths[0], replayed(advance, top, workers)) <= EXACT
    assert all(gap(path, paths[0]) == 0 for path in paths), "replicas stay equal, bit for bit"


def test_identity_is_the_same_norms_with_ema_started_at_the_gradient() -> None:
    plain = trained("gluon", STEPS, start="gradient")[1:]
    one = run_workers(1, lambda exchange: Worker(exchange, "ef21-muon", compressor="identity").walk(0, STEPS))
    assert gap(one[0], plain) <= EXACT
    weight = nn.Parameter(start())
    optimizer, means = optimizer_of(weight, "gluon"), []
    for step in range(STEPS):
        weight.grad = torch.stack([sample(step, j, weight.detach()) for j in range(WORKERS)]).mean(0)
        optimizer.step()
        means.append(weight.detach().clone())
    assert gap(walked("ef21-muon", compressor="identity")[0], means) <= EXACT


def test_reductions_of_the_readings() -> None:
    one, other = (walked(m, gamma=0.0, **TOP) if "mvr" in m else walked(m, **TOP) for m in (CASES[1][0], CASES[0][0]))
    assert gap(one[0], other[0]) == 0
    always = walked("ef21-sarah-reading", sarah_restart=1, **TOP)[0]  # no memory: EF21 on the gradient itself
    assert gap(always, walked("ef21-muon", momentum=0.0, **TOP)[0]) <= EXACT


@pytest.mark.parametrize("name", ["bf16", "natural", "random-k", "rank-r"])
def test_replicas_stay_equal_and_the_gap_is_what_was_not_sent(name: str) -> None:
    def work(exchange: Exchange) -> tuple[Tensor, Tensor, Tensor]:
        worker = Worker(exchange, "ef21-muon", compressor=name, compressor_rank=2)
        worker.walk(0, STEPS)
        kept = worker.optimizer.state[worker.weight]
        return worker.weight.detach(), kept["sent"], kept["estimate"]

    weights, sent, estimates = zip(*run_workers(WORKERS, work), strict=True)
    assert all(torch.equal(weights[0], weight) for weight in weights)
    torch.testing.assert_close(estimates[0], torch.stack(sent).mean(0), rtol=0, atol=EXACT)


def test_bytes_that_are_sent_and_kept() -> None:
    def work(exchange: Exchange) -> tuple[int, int]:
        worker = Worker(exchange, "ef21-muon", **TOP)
        worker.walk(0, 3)
        return exchange.sent, worker.optimizer.memory()["state_bytes"]

    entries = SHAPE[0] * SHAPE[1]
    later = KEPT * (8 + 4)  # fp64 values and their places
    assert run_workers(2, work) == [(8 * entries + 2 * later, 3 * 8 * entries)] * 2
    assert run_workers(1, work) == [(8 * entries + 2 * later, 2 * 8 * entries)]


def test_resume_with_as_many_workers_is_the_run() -> None:
    saved: dict[int, Any] = {}

    def half(exchange: Exchange) -> Tensor:
        worker = Worker(exchange, "ef21-muon", compressor="random-k")
        worker.walk(0, 4)
        saved[exchange.rank] = (worker.weight.detach().clone(), *worker.saved())
        return worker.walk(4, STEPS)[-1]

    def resumed(exchange: Exchange) -> Tensor:
        worker = Worker(exchange, "ef21-muon", compressor="random-k")
        worker.weight.data.copy_(saved[0][0])
        worker.optimizer.load_state_dict(saved[0][1])  # a checkpoint holds the state of the first
        states = [saved[rank][2] for rank in range(WORKERS)]
        load_worker_states_(worker.optimizer.param_groups, worker.optimizer.state, states, exchange)
        return worker.walk(4, STEPS)[-1]

    run = run_workers(WORKERS, half)
    assert all(torch.equal(one, other) for one, other in zip(run, run_workers(WORKERS, resumed), strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_resume_with_another_number_sends_the_mean_momentum_in_full(workers: int) -> None:
    saved: dict[int, Any] = {}

    def half(exchange: Exchange) -> None:
        worker = Worker(exchange, "ef21-muon", **TOP)
        worker.walk(0, 4)
        saved[exchange.rank] = (worker.weight.detach().clone(), *worker.saved())

    def resumed(exchange: Exchange) -> tuple[Tensor, int]:
        worker = Worker(exchange, "ef21-muon", **TOP)
        worker.weight.data.copy_(saved[0][0])
        worker.optimizer.load_state_dict(saved[0][1])
        states = copy.deepcopy([saved[rank][2] for rank in range(WORKERS)])
        load_worker_states_(worker.optimizer.param_groups, worker.optimizer.state, states, exchange)
        return worker.walk(4, 5)[-1], exchange.sent

    run_workers(WORKERS, half)
    x = saved[0][0]
    mean = sum(saved[j][2]["hidden_0"]["momentum"] for j in range(WORKERS)) / WORKERS
    step = B * mean + (1 - B) * sum(sample(4, j, x) for j in range(workers)) / workers
    for after, sent in run_workers(workers, resumed):
        torch.testing.assert_close(after, x - LR * lmo(step), rtol=0, atol=EXACT)
        assert sent == 8 * x.numel()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2))


def test_a_bias_steps_if_any_worker_hears_it() -> None:
    """One worker's bias gradient is rounding noise, the other's is not: both take the same step."""
    models = [network() for _ in range(2)]

    def work(exchange: Exchange) -> list[Tensor]:
        net = models[exchange.rank]
        optimizer = Gluon(net, method="ef21-muon", workers=2)
        optimizer.exchange = exchange
        for step in range(2):
            generator = torch.Generator().manual_seed(10 * step + exchange.rank)
            for name, p in net.named_parameters():
                p.grad = torch.randn(p.shape, generator=generator)
                if exchange.rank == 0 and name == "1.bias":
                    p.grad *= 1e-9
            optimizer.step()
        return [p.detach() for p in net.parameters()]

    one, other = run_workers(2, work)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    first = list(network().parameters())
    assert not torch.equal(one[3], first[3])


def test_all_workers_skip_together_and_all_end_if_one_fails() -> None:
    def work(policy: str) -> Callable[[Exchange], Tensor]:
        def one(exchange: Exchange) -> Tensor:
            worker = Worker(exchange, "ef21-muon", on_nonfinite=policy)
            worker.walk(0, 2)
            worker.weight.grad = torch.full(SHAPE, torch.nan if exchange.rank else 1.0, dtype=torch.float64)
            worker.optimizer.step()
            return worker.weight.detach() - worker.walk(5, 6)[-1]

        return one

    a, b = run_workers(2, work("skip"))
    assert torch.equal(a, b) and a.isfinite().all()
    with pytest.raises(FloatingPointError, match="Non-finite gradient"):
        run_workers(2, work("raise"))


def test_a_worker_that_ends_early_is_an_error_and_no_hang() -> None:
    with pytest.raises(RuntimeError, match=r"sends a message, but 1 of 3 workers have ended\. Let all workers"):
        run_workers(3, lambda exchange: Worker(exchange, "ef21-muon").walk(0, 3 - (exchange.rank == 1)))


def test_errors() -> None:
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, "ef21-muon", workers=4)
    weight.grad = torch.ones(SHAPE, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"`workers`=4, but the optimizer's `exchange` has 1\. Set `optimizer"):
        optimizer.step()
    assert torch.equal(weight, start()) and not optimizer.state
    with pytest.raises(ValueError, match=r"Expected no `compile` with estimator 'ef21'"):
        Gluon(network(), method="ef21-muon", compile=True)
    with pytest.raises(ValueError, match=r"Expected `momentum_dtype` of group .* to be None with several workers"):
        Gluon(network(), method="ef21-muon", workers=2, momentum_dtype="bfloat16")
    with pytest.raises(ValueError, match="Expected `size` to be a number of workers, but got 0"):
        run_workers(0, lambda exchange: None)
    with pytest.raises(ValueError, match="`compressor_share`"):
        Gluon(network(), method="ef21-muon", compressor_share=0.0)
