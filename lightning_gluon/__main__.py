"""The command `lightning-gluon`, also `python -m lightning_gluon`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

HELP = """usage: lightning-gluon COMMAND [options]

  fit | validate | test | predict    run a Trainer on any LightningModule; -c FILE.yaml (several merge), --help for all
  partition                          print the role, norm and matrices of every parameter of a model
  methods                            print the table of methods

  lightning-gluon fit -c recipes/vit/base.yaml -c recipes/vit/tiny.yaml -c recipes/methods/gluon.yaml
  lightning-gluon partition --model timm/vit_small_patch16_224
  lightning-gluon partition --model transformers/qwen2 --kwargs '{"num_hidden_layers": 2}'"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Its arguments; None takes the process's.

    Raises:
        SystemExit: If the command is unknown or jsonargparse is missing.
    """
    try:
        _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter flushes once more


def _run(argv: Sequence[str] | None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:  # class paths of the project one stands in, as with `python -m`
        sys.path.insert(0, os.getcwd())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
    elif arguments[0] in ("partition", "methods"):
        from lightning_gluon.cli import tables

        getattr(tables, arguments[0])(arguments[1:])
    elif arguments[0] in ("fit", "validate", "test", "predict"):
        _train(None if argv is None else arguments)
    else:
        raise SystemExit(
            f"Expected a command out of fit, validate, test, predict, partition, methods; got {arguments[0]!r}."
        )


def _train(arguments: list[str] | None) -> None:
    try:
        import jsonargparse  # noqa: F401
    except ModuleNotFoundError as error:
        raise SystemExit('Expected `jsonargparse` to be installed. Run: pip install "lightning-gluon[cli]"') from error
    from lightning_gluon.cli.fit import GluonCLI

    GluonCLI(args=arguments, parser_kwargs={"prog": "lightning-gluon"})


if __name__ == "__main__":
    main()
