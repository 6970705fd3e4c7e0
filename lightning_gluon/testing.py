"""The contract of norms, estimators and methods, for rows of your own.

    from lightning_gluon.testing import check_estimator, check_method, check_norm

    check_norm(MyNorm())            # your subclass of `lightning_gluon.norms.Norm`
    check_estimator(my_row)         # your `lightning_gluon.estimators.Estimator`
    check_method("my-method")       # a registered row of `METHODS`

Each check raises `AssertionError` with one sentence that says which promise is broken. The package's own tests run them
over every registered row.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gluon.estimators.recursions import Estimator
from lightning_gluon.norms.base import Norm
from lightning_gluon.norms.needs import Context, Partner
from lightning_gluon.optimizer import Gluon
from lightning_gluon.step.checks import find_method

EXACT = 1e-10  # fp64, exact singular values; measured 1e-13 at most
CLOSE = 1e-5  # fp32; measured 2e-6 at most
SHAPES = ((6, 10), (10, 6), (7, 7))
MAGNITUDES = (1e-30, 1e-9, 1e9, 1e30)

__all__ = ["check_estimator", "check_method", "check_norm"]


def check_norm(norm: Norm) -> None:
    """Check the promises of a norm and its LMO that a step relies on.

        <G, D(G)> = ||G||_*  and  ||D(G)|| = 1        a norm that `attains`
        ||D(G)|| <= longest                           any other; 1 if it declares no other bound
        D(c G) = D(G), c > 0;   D(0) = 0;   a batch is its points;   the input, its dtype and its device are kept

    Shapes: points of (6, 10), (10, 6) and (7, 7), or vectors of their length for a norm of vectors.

    Args:
        norm: The norm; a spectral one with `orthogonalizer="svd"`, since the identities are checked to 1e-10.

    Raises:
        AssertionError: If a promise is broken.

    References:
        Definitions: "Gluon", arXiv 2505.13416, section 2.

    Example:
        >>> from lightning_gluon.norms import RowNorm
        >>> check_norm(RowNorm())
    """
    for shape in SHAPES:
        point = shape if norm.rank == 2 else (shape[0] * shape[1],)
        _check_duality(norm, point)
        _check_invariance(norm, point)
        _check_batch(norm, point)
        _check_stack(norm, shape)
        _check_pieces(norm, shape)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _demand(holds: bool | Tensor, promise: str, part: object) -> None:
    if not bool(holds):
        raise AssertionError(f"{part!r} breaks a promise: {promise}.")


def _near(one: Tensor, other: Tensor, bound: float) -> bool:
    """Return whether two tensors agree to a bound, relative to the larger one's size."""
    difference = (one - other).abs().max()
    size = torch.maximum(one.abs().max(), other.abs().max())
    return bool(difference <= bound * size)


def _check_duality(norm: Norm, shape: tuple[int, ...]) -> None:
    for seed in range(3):
        g = _draw(*shape, seed=seed)
        x = _draw(*shape, seed=seed + 10)
        d = norm.lmo(g)
        length = norm.norm(d)
        dual = norm.dual_norm(g)
        product = (x * g).sum()
        bound = norm.norm(x) * dual
        _demand(length <= norm.longest + EXACT, f"||D(G)|| <= {norm.longest:g}", norm)
        _demand(product.abs() <= bound * (1 + EXACT), "|<X, G>| <= ||X|| ||G||_*", norm)
        if norm.attains:
            attained = (g * d).sum()
            _demand(_near(attained, dual, EXACT), "<G, D(G)> = ||G||_*", norm)
            _demand(_near(length, torch.ones_like(length), EXACT), "||D(G)|| = 1", norm)


def _check_invariance(norm: Norm, shape: tuple[int, ...]) -> None:
    g = _draw(*shape).float()
    before = g.clone()
    d = norm.lmo(g)
    _demand(torch.equal(g, before), "`lmo` leaves its input as it is", norm)
    zero = torch.zeros_like(g)
    _demand(torch.equal(norm.lmo(zero), zero), "D(0) = 0", norm)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        cast = norm.lmo(g.to(dtype))
        _demand(cast.dtype == dtype, "`lmo` keeps the dtype", norm)
    for scale in MAGNITUDES:
        again = norm.lmo(g * scale)
        _demand(_near(again, d, CLOSE), f"D(c G) = D(G), for c = {scale:g}", norm)


def _check_batch(norm: Norm, shape: tuple[int, ...]) -> None:
    points = [_draw(*shape, seed=seed) * 10.0**seed for seed in range(3)]
    g = torch.stack(points)
    apart = torch.stack([norm.lmo(point) for point in points])
    _demand(_near(norm.lmo(g), apart, EXACT), "a batch is its points", norm)
    for measure in (norm.norm, norm.dual_norm):
        numbers = measure(g)
        _demand(numbers.shape == g.shape[:1], "one number per point of a batch", norm)


def _check_stack(norm: Norm, shape: tuple[int, int]) -> None:
    """Check `scale * lmo_` of a stack, as the step calls it, against `lmo`, with the declared needs at hand."""
    rows, columns = shape
    if norm.turns:
        rows, columns = sorted(shape)
    if not norm.matrices:
        rows, columns = 1, rows * columns
    stack = torch.stack([_draw(rows, columns, seed=seed) for seed in range(2)])
    context = _make_context(norm, stack)
    concrete = norm.on(stack, stack.shape)
    staged = stack.to(concrete.staging_dtype(stack), copy=True)
    units = concrete.lmo_(staged, context)
    _demand(units.shape == stack.shape, "`lmo_` keeps the shape of the stack", norm)
    _demand(units.isfinite().all(), "`lmo_` is finite for a finite stack", norm)
    for own in norm.statistics:
        present = tuple(context.statistics[own.name].shape)
        declared = (len(stack), *own.shape(rows, columns))
        _demand(present == declared, f"the statistic {own.name!r} keeps its shape", norm)
    needs = norm.reads_weights or norm.reads_partner or norm.statistics
    if not needs:
        points = stack.squeeze(1) if norm.rank == 1 else stack
        whole = norm.lmo(points).view_as(stack)
        scaled = units * norm.scale(rows, columns)
        _demand(_near(scaled, whole, EXACT), "scale * lmo_(stack) = lmo(stack)", norm)


def _check_pieces(norm: Norm, shape: tuple[int, int]) -> None:
    """Check that matrices may be cut along the dimensions that the norm itself declares."""
    g = _draw(*shape)
    whole = norm.lmo(g)
    for dim in vars(type(norm)).get("separable", ()):
        pieces = [norm.lmo(piece) for piece in g.split(2, dim)]
        _demand(_near(torch.cat(pieces, dim), whole, EXACT), "the LMO of a piece is the piece of the LMO", norm)


def _make_context(norm: Norm, stack: Tensor) -> Context:
    """Return the declared needs of a norm besides a stack."""
    context = Context(statistics={own.name: own.first(stack) for own in norm.statistics})
    if norm.reads_weights:
        context.weights = torch.ones_like(stack)
    if norm.reads_scales:
        scale = norm.scale(*stack.shape[-2:])
        context.scales = stack.new_full((len(stack), 1, 1), scale)
    if norm.reads_partner:
        partner = torch.ones(stack.shape[-1], 2, dtype=stack.dtype)
        context.partners = [Partner(partner)] * len(stack)
    return context


def check_estimator(estimator: Estimator, options: Mapping[str, Any] | None = None) -> None:
    """Check the promises of an estimator's recursion that a step relies on.

        update(M, G, G) = G for M = G: gradients that are all G give directions that are all G
        buffers are advanced in place; gradients are only read; every parameter is on its own; the same every time

    Shapes: gradients of (4, 3) and (5,).

    Args:
        estimator: The row.
        options: Options of its group besides its own defaults; default: momentum .9.

    Raises:
        AssertionError: If a promise is broken.

    References:
        The identities of STORM, arXiv 1905.10018, and of Gluon-MVR, arXiv 2512.16598.

    Example:
        >>> from lightning_gluon.estimators.recursions import ESTIMATORS
        >>> check_estimator(ESTIMATORS["mvr2"])
    """
    if estimator.step_ is not None:
        return  # it has no direction
    group = {"momentum": 0.9, "steps": 5, "total_steps": 10, **estimator.options, **(options or {})}
    if "clip" in group:
        group["clip"] = None  # a bound on the gradient would scale it
    gradients = [_draw(4, 3), _draw(5, seed=1)]
    buffers = {name: [g.clone() for g in gradients] for name in estimator.names(group)}
    for _ in range(4):
        direction = estimator.update(buffers, gradients, gradients, estimator.at(group))
        for one, other in zip(direction, gradients, strict=True):
            _demand(_near(one, other, EXACT), "constant gradients are their own estimate", estimator)
    _check_recursion(estimator, group)


def _check_recursion(estimator: Estimator, group: Mapping[str, object]) -> None:
    together = _run(estimator, group, [0, 1])
    again = _run(estimator, group, [0, 1])
    first, second = _run(estimator, group, [0]), _run(estimator, group, [1])
    _demand(_equal(together, again), "the same gradients give the same directions", estimator)
    _demand(_equal(together, [*first, *second]), "a parameter does not depend on its neighbours", estimator)


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def _run(estimator: Estimator, group: Mapping[str, object], members: list[int]) -> list[Tensor]:
    """Return the directions of three steps, and check that the recursion keeps to its own buffers."""
    shapes = [(4, 3), (5,)]
    first = [_draw(*shapes[member], seed=member) for member in members]
    buffers = {name: [g.clone() for g in first] for name in estimator.names(group)}
    before = _addresses(buffers)
    direction = first
    for step in range(3):
        new = [_draw(*shapes[member], seed=10 * step + member) for member in members]
        old = [g * 0.9 for g in new]
        read = [g.clone() for g in (*new, *old)]
        advanced = estimator.update(buffers, new, old, estimator.at(group))
        direction = [one.clone() for one in advanced]
        _demand(_equal([*new, *old], read), "gradients are only read", estimator)
    _demand(_addresses(buffers) == before, "buffers are advanced in place", estimator)
    return direction


def _addresses(buffers: Mapping[str, list[Tensor]]) -> list[int]:
    return [own.data_ptr() for kept in buffers.values() for own in kept]


def check_method(method: str, **options: Any) -> None:
    """Check a registered method in training, as a Trainer, a checkpoint and a scheduler rely on it.

    - `step(closure)` evaluates as many gradients as the method says, and leaves `.grad` as it is.
    - The state is complete after the first step; zero gradients at `lr = 0` move nothing.
    - Groups hold plain values; a `weights_only` checkpoint resumes bit for bit; the optimizer can be copied.

    Shapes: a network of layers (24, 12), (16, 24) and (5, 16), with biases and a normalisation.

    Args:
        method: A row of `lightning_gluon.METHODS`.
        **options: Its options, as for `Gluon`.

    Raises:
        AssertionError: If a promise is broken.

    References:
        The contract of `torch.optim.Optimizer`, and of Lightning's automatic optimization.

    Example:
        >>> check_method("gluon")
    """
    if find_method(method).needs_length:
        options = {"total_steps": 8, **options}
    _check_zero(method, options)
    net = _small_network()
    optimizer = Gluon(net, lr=0.02, method=method, **options)
    counter = _Counter(net)
    counter.take(optimizer, 0)
    _demand(counter.calls == 1, "the first step evaluates one gradient", method)
    keys = _state_keys(optimizer)
    for step in range(1, 4):
        counter.take(optimizer, step)
    _demand(counter.calls == optimizer.gradient_evaluations, "gradient evaluations are counted", method)
    _demand(_state_keys(optimizer) == keys, "the state is complete after the first step", method)
    for group in optimizer.param_groups:
        rest = [value for key, value in group.items() if key != "params"]
        _demand(_is_plain(rest), f"group {group['name']!r} holds plain values", method)
    if optimizer.reference_point is None:
        _check_gradients(optimizer, net, method)
    _check_resume(optimizer, net, method, options)


def _state_keys(optimizer: Gluon) -> dict[Tensor, set[str]]:
    return {parameter: set(kept) for parameter, kept in optimizer.state.items()}


def _small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 24),
        nn.Tanh(),
        nn.Linear(24, 16),
        nn.Tanh(),
        nn.LayerNorm(16),
        nn.Linear(16, 5),
    )


def _backward(net: nn.Module, step: int) -> Tensor:
    x = _draw(32, 12, seed=100 + step).float()
    y = torch.sin(3 * x[:, :5])
    net.zero_grad()
    loss = nn.functional.mse_loss(net(x), y)
    loss.backward()
    return loss


class _Counter:
    """Counts the evaluations of a network's loss."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.calls = 0

    def take(self, optimizer: Gluon, step: int) -> None:
        """Take a step with a closure."""

        def closure() -> Tensor:
            self.calls += 1
            return _backward(self.net, step)

        optimizer.step(closure)


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (int, float, str, bool)


def _weights(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def _check_zero(method: str, options: Mapping[str, Any]) -> None:
    net = _small_network()
    optimizer = Gluon(net, lr=0.0, method=method, **options)
    before = _weights(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # what sharded checkpointing does first
    _demand(torch.equal(_weights(net), before), "zero gradients at lr = 0 move nothing", method)
    begun = all(parameter in optimizer.state for parameter in net.parameters())
    _demand(begun, "they begin the state of all parameters", method)
    groups = optimizer.state_dict()["param_groups"]
    copied = copy.deepcopy(optimizer).state_dict()["param_groups"]
    _demand(copied == groups, "the optimizer can be copied", method)


def _check_gradients(optimizer: Gluon, net: nn.Module, method: str) -> None:
    before = [gradient.clone() for gradient in _present_gradients(net)]
    optimizer.step()
    _demand(_equal(_present_gradients(net), before), "a step leaves `.grad` as it is", method)


def _present_gradients(net: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def _check_resume(optimizer: Gluon, net: nn.Module, method: str, options: Mapping[str, Any]) -> None:
    other = _small_network(seed=1)
    other.load_state_dict(net.state_dict())
    resumed = Gluon(other, lr=0.5, method=method, **options)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(4, 7):
        for model, stepped in ((net, optimizer), (other, resumed)):
            _Counter(model).take(stepped, step)
    same = torch.equal(_weights(net), _weights(other))
    _demand(same, "a resumed run is the run, bit for bit", method)
    same = resumed.gradient_evaluations == optimizer.gradient_evaluations
    _demand(same, "the count of gradient evaluations is resumed", method)
