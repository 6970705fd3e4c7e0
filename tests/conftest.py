"""One thread, one seed, no network: what a test prints on one machine it prints on every machine."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "COLUMNS": "120",
}
# Tests start processes of their own, in other folders: they import this checkout.
ROOT = str(Path(__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
os.environ.update(OFFLINE)  # before torch and the hub's libraries read them
# A shell starts what runs in its background with this signal ignored, and Python then leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Seed every generator before each test and put back what a test may leave changed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def tables() -> Iterator[None]:
    """Put the tables back as they were, after a test that registers rows."""
    from lightning_gluon.estimators.recursions import ESTIMATORS
    from lightning_gluon.methods import METHODS
    from lightning_gluon.norms.table import NORMS
    from lightning_gluon.radius.rules import RADIUS_RULES
    from lightning_gluon.step.decay import DECAYS
    from lightning_gluon.step.retraction import RETRACTIONS

    kept = [(table, dict(table)) for table in (NORMS, ESTIMATORS, METHODS, DECAYS, RETRACTIONS, RADIUS_RULES)]
    yield
    for table, rows in kept:
        table.clear()
        table.update(rows)
