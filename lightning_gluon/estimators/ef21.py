"""EF21: workers send compressed news of their momenta, and all keep the mean of what was sent.

    M_j <- the worker's own momentum,   R_j = C(M_j - G_j),   G_j <- G_j + R_j,   G <- G + mean_j R_j

`G` is the direction. What a compressor leaves out stays in `M_j - G_j`, so it is sent later and not lost. The first
message is sent in full, since there is no `G_j` yet: `G_j = M_j`. A single worker has `G = G_j`, which is kept once.

The paper's server also compresses the weights that it sends back. Here every worker computes the server's step itself,
from the same `G`, so nothing is sent back and there is no second compressor.

References:
    "EF21-Muon", arXiv 2510.00643.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_gluon.estimators.compressors import IN_FULL, Compressor, Message, compressor_of
from lightning_gluon.estimators.kernels import Buffers, GroupOptions, Tensors
from lightning_gluon.estimators.low_rank import sketch_generator
from lightning_gluon.estimators.messages import ALONE, Exchange

__all__ = ["EF21_OPTIONS", "MESSAGES", "begins_anew", "correspond"]

# The worker's own sum of messages, and the mean over all workers: only with several workers they differ.
MESSAGES = ("sent", "estimate")
EF21_OPTIONS = {"compressor": "top-k", "compressor_share": 0.1, "compressor_rank": 4, "seed": 0, "workers": 1}


def correspond(buffers: Buffers, options: GroupOptions) -> Tensors:
    """Send the news of `momentum`, and return the mean of all that was sent.

    Args:
        buffers: `momentum`, `sent`, and with several workers `estimate`, which are advanced in place.
        options: Options of the group; a step adds the `exchange` and which parameters are sent for the `first` time.

    Returns:
        The directions: `estimate`, or `sent` of a single worker.
    """
    exchange: Exchange = options.get("exchange", ALONE)
    sent = buffers["sent"]
    news = torch._foreach_sub(buffers["momentum"], sent)
    parcels = _Parcels(options, news)
    messages = exchange.gather(parcels.pack(exchange.rank))
    estimate = buffers.get("estimate")
    for rank, message in enumerate(messages):
        received = parcels.unpack(rank, message)
        if rank == exchange.rank:
            torch._foreach_add_(sent, received)
        if estimate is not None:
            torch._foreach_add_(estimate, received, alpha=1 / exchange.size)
    return sent if estimate is None else estimate


class _Parcels:
    """The messages of one round: one compressor for every tensor, all tensors in one list.

    Args:
        options: Options of the group.
        like: Tensors of the shapes that are sent.
    """

    def __init__(self, options: GroupOptions, like: Sequence[Tensor]) -> None:
        self.options = options
        self.like = like
        first = options.get("first", [False] * len(like))
        usual = compressor_of(options)
        self.compressors: list[Compressor] = [IN_FULL if begins else usual for begins in first]
        self.lengths = [0] * len(like)

    def pack(self, rank: int) -> Message:
        """Return the message of a worker."""
        joined: Message = []
        for index, (compressor, tensor) in enumerate(zip(self.compressors, self.like, strict=True)):
            message = compressor.pack(tensor, self._draw(rank, tensor))
            self.lengths[index] = len(message)
            joined += message
        return joined

    def unpack(self, rank: int, joined: Message) -> list[Tensor]:
        """Return what the message of a worker stands for; those of all workers have the same parts."""
        found = []
        rest = iter(joined)
        for compressor, tensor, length in zip(self.compressors, self.like, self.lengths, strict=True):
            message = [next(rest) for _ in range(length)]
            found.append(compressor.unpack(message, tensor, self._draw(rank, tensor)))
        return found

    def _draw(self, rank: int, tensor: Tensor) -> partial[torch.Generator]:
        """Return the maker of a random stream: a function of seed, step, worker and shape."""
        seed, step = self.options["seed"], self.options["steps"]
        return partial(sketch_generator, seed, step, (rank, *tensor.shape), tensor.device)


def begins_anew(state: Mapping[str, Tensor]) -> bool:
    """Return whether a parameter has sent nothing yet, or has to send all of it once more."""
    return MESSAGES[0] not in state
