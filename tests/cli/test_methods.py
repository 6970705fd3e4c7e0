"""The table of methods at every width."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from lightning_gluon import METHODS
from lightning_gluon.__main__ import main
from lightning_gluon.cli.tables import detail, overview


def test_methods_prints_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods"])
    table = capsys.readouterr().out
    assert all(f"│ {name} " in table for name in METHODS)
    for width in (60, 80, 100, 120):
        narrow = io.StringIO()
        Console(file=narrow, width=width).print(overview(width), detail("limuon", METHODS["limuon"]))
        printed = narrow.getvalue()
        assert all(f"│ {name} " in printed for name in METHODS) and "…" not in printed
        assert all(word in printed for word in ("gradients", "orthogonalised", "power_iterations=1"))
    main(["methods", "limuon"])
    assert "rank=None" in (printed := capsys.readouterr().out)
    assert re.search(r"input +│ spectral .* 0.3 ", printed) and "momentum=0.9" in printed
    with pytest.raises(SystemExit, match=r"`method` to be one of gluon, .* got 'limoun'"):
        main(["methods", "limoun"])
