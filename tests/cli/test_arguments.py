"""Mistakes of the small commands."""

from __future__ import annotations

import pytest

from lightning_gluon.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["partition", "--modl", "x"], "unknown option --modl (did you mean --model?). See `lightning-gluon partition"),
        (["partition", "--zzz"], "unknown option --zzz. See"),
        (["partition"], "one of the arguments --model -c/--config is required. See"),
        (["partition", "--model", "x", "-c", "y"], "not allowed with argument --model. See"),
        (["methods", "gluon", "scion"], "unrecognized arguments: scion. See `lightning-gluon methods --help`."),
    ],
)
def test_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert message in told
    assert told.count("\n") == 1
