"""The shell completes commands, options, recipes and methods."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_gluon.__main__ import COMMANDS, main

pytest.importorskip("shtab")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    words = [
        '""',
        "fit -c vit/t",
        "fit --optimizer.method gluon-mv",
        "fit --optimizer.metho",
        "compare --j",
        "recipes sh",
    ]
    tries = "".join(
        f"COMP_WORDS=(lightning-gluon {line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        "_shtab_lightning_gluon 2>/dev/null; echo ${COMPREPLY[@]}\n"
        for line in words
    )
    done = subprocess.run(
        ["bash", "-c", f"source {script}\n{tries}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert set(done[0].split()) == set(COMMANDS)
    assert done[1:] == [
        "vit/tiny", "gluon-mvr1 gluon-mvr2 gluon-mvr3", "--optimizer.method", "--json", "show",
    ]  # fmt: skip


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "fish"])
    assert "choose from" in capsys.readouterr().err
