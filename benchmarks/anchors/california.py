"""California housing with an MLP: the tabular benchmark of arXiv 2604.15297, tuned AdamW and Muon against ours.

    python -m benchmarks.anchors.california --path FOLDER_WITH_CAL_HOUSING_DATA

Published, ten seeds on an A100, architecture and optimizer tuned together by 100 trials: test RMSE of AdamW .4936,
Muon .4824, Muon with averaged weights .4708, SOAP .4862. The rows `as published` repeat the authors' best settings:
their MLP, constant rates, batches of 256, clipping at 1, an end after 16 epochs without a new best validation
score.

All other rows share one MLP of three blocks of 208 without dropout, 1,300 steps (25 epochs) of a cosine schedule
with 5 % warmup. As in the paper, a run counts at its best validation score, of thirteen along it. Features are
scikit-learn's eight, mapped to normal quantiles of the training split. The split, 13,209 / 3,303 / 4,128 rows, is
ours, since the authors' is not at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.anchors import runner
from benchmarks.anchors.runner import Batch, Row

BATCH = 256
EPOCH = 52
RATES = (0.0025, 0.005, 0.01, 0.02)
STEPS = 25 * EPOCH
ADAMW_PUBLISHED = {"schedule": "constant", "weight_decay": {"hidden": 0.4556, "input": 0.4556, "head": 0.4556}}
# The authors step the first layer by Muon too. Decay is in units of the hidden rate, theirs in units of AdamW's.
MUON_PUBLISHED = {
    "schedule": "constant",
    "weight_decay": {"hidden": 0.2213, "head": 0.2213 * 0.00017016 / 0.00027252},
    "radius": {"head": 0.00017016 / 0.00027252, "bias": 0.00017016 / 0.00027252},
    "rules": {"net.0.weight": "hidden"},
}


class California(runner.Task):
    """The task."""

    name = "california"
    summary = "MLP (3 x 208) on California housing, batch 256"
    unit = "test RMSE"
    evaluations = STEPS
    epoch = EPOCH
    early_stop = True
    published: ClassVar[Mapping[str, str]] = {
        "adamw": ".4936 ± .0110 (tuned)",
        "adamw, as published": ".4936 ± .0110",
        "muon": ".4824 ± .0021 (tuned), averaged .4708",
        "muon, as published": ".4824 ± .0021",
    }
    rows: ClassVar[Mapping[str, Row]] = {
        "adamw": Row("adamw", (0.002, 0.004, 0.008, 0.016, 0.032)),
        **runner.family(RATES, "gluon-nesterov", "muon", "gluon", "normuon", "hyperball"),
        "auto": runner.auto(),
        "muon, as published": Row(
            "muon",
            (0.00027252,),
            MUON_PUBLISHED,
            net={"blocks": 5, "width": 208, "dropout": 0.2396},
            patience=16,
            steps=500 * EPOCH,
            companion=False,
        ),
        "adamw, as published": Row(
            "adamw",
            (0.00027222,),
            ADAMW_PUBLISHED,
            net={"blocks": 2, "width": 784, "dropout": 0.369},
            patience=16,
            steps=500 * EPOCH,
        ),
    }
    points = 13
    shares: ClassVar[Mapping[float, tuple[str, ...]]] = {0.5: ("gluon-nesterov",), 0.85: ("gluon-nesterov",)}

    @cached_property
    def data(self) -> dict[str, Batch]:
        """Return features and targets by split."""
        return read(self.path)

    @cached_property
    def spread(self) -> float:
        """Return the standard deviation of the training targets, by which they were divided."""
        return float(targets(self.path)[splits()["train"]].std())

    def net(self, blocks: int = 3, width: int = 208, dropout: float = 0.0) -> nn.Module:
        """Return the MLP."""
        layers: list[nn.Module] = []
        for before in [8, *[width] * (blocks - 1)]:
            layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Linear(width, 1))

    def batches(self, seed: int, steps: int) -> Iterator[Batch]:
        """Yield batches of epochs in a new order each, the last of an epoch smaller."""
        features, labels = self.data["train"]
        generator = torch.Generator().manual_seed(seed)
        while steps > 0:
            order = torch.randperm(len(labels), generator=generator)
            for chosen in order.split(BATCH)[:steps]:
                yield features[chosen], labels[chosen]
            steps -= EPOCH

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return the squared error of standardised targets."""
        return functional.mse_loss(net(batch[0]).squeeze(-1), batch[1])

    def score(self, net: nn.Module, split: str) -> float:
        """Return the root mean squared error, in 100,000 dollars."""
        return self.spread * float(self.loss(net, self.data[split])) ** 0.5


def table(path: Path) -> numpy.ndarray:
    """Return the file's nine columns."""
    return numpy.loadtxt(path / "cal_housing.data", delimiter=",")


def targets(path: Path) -> numpy.ndarray:
    """Return median house values in 100,000 dollars."""
    return table(path)[:, 8] / 100_000


def splits() -> dict[str, numpy.ndarray]:
    """Return the rows of every split."""
    order = numpy.random.default_rng(0).permutation(20_640)
    return {"train": order[:13_209], "val": order[13_209:16_512], "test": order[16_512:]}


def features(path: Path) -> numpy.ndarray:
    """Return income, age, rooms, bedrooms, population, occupants, latitude and longitude, as scikit-learn does."""
    longitude, latitude, age, rooms, bedrooms, people, households, income, _ = table(path).T
    ratios = (rooms / households, bedrooms / households, people, people / households)
    return numpy.stack([income, age, *ratios, latitude, longitude], axis=1)


def read(path: Path) -> dict[str, Batch]:
    """Return standardised features and targets by split; the training split alone sets the scale."""
    from sklearn.preprocessing import QuantileTransformer

    values, labels, rows = features(path), targets(path), splits()
    train = values[rows["train"]]
    noisy = train + numpy.random.default_rng(0).normal(0, 1e-5, train.shape)
    scaler: Any = QuantileTransformer(n_quantiles=len(train) // 30, output_distribution="normal", subsample=None)
    scaler.fit(noisy)
    mean, spread = labels[rows["train"]].mean(), labels[rows["train"]].std()
    found = {}
    for split, chosen in rows.items():
        scaled = torch.tensor(scaler.transform(values[chosen]), dtype=torch.float32)
        standard = torch.tensor((labels[chosen] - mean) / spread, dtype=torch.float32)
        found[split] = (scaled, standard)
    return found


if __name__ == "__main__":
    runner.main(California, __doc__)
