"""The key that was probably meant."""

from __future__ import annotations

import pytest

from lightning_gluon.cli.given import Given
from lightning_gluon.cli.keys import Keys

KNOWN = ["config", "seed_everything", "trainer.max_epochs", "trainer.max_steps", "optimizer.lr", "optimizer.method"]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("max_epochs", "Did you mean `trainer.max_epochs`?"),
        ("trainer.max_epoch", "Did you mean `trainer.max_epochs`?"),
        ("trainr.max_epochs", "Did you mean `trainer.max_epochs`?"),
        ("model.lr", "Did you mean `optimizer.lr`?"),
        ("seed_everthing", "Did you mean `seed_everything`?"),
        ("optimizer.zzz", "Keys of `optimizer`: lr, method."),
        ("zzz", "See `--help`."),
        ("out_feature", "See `--help`."),
        ("model.out_feature", "Did you mean `model.out_features`?"),
    ],
)
def test_suggestions(key: str, sentence: str) -> None:
    given = Given({"model.class_path": "torch.nn.Linear"} if key.startswith("model.out") else {})
    assert Keys(given, KNOWN).suggest(key) == sentence


def test_a_key_of_several_sections_offers_all() -> None:
    keys = Keys(Given({"model.class_path": "torch.optim.SGD"}), KNOWN)
    assert keys.suggest("lr", dashes="--") == "Did you mean `--optimizer.lr` or `--model.lr`?"
