"""The command `lightning-gluon`, also `python -m lightning_gluon`."""

from __future__ import annotations

import difflib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence

from lightning_gluon import __version__

__all__ = ["main"]

HELP = """usage: lightning-gluon COMMAND [options]

  fit | validate | test | predict    run a Trainer on any LightningModule; -c FILE.yaml (several merge), --help for all
  partition                          print the role, norm and matrices of every parameter of a model
  methods [NAME]                     print the table of methods, or the rules and options of one
  recipes list | show | copy         list, show or copy the recipes that come with the package
  export CKPT DIR [--merge]          write a model that transformers or timm loads, with tokenizer and model card
  generate CKPT|DIR PROMPT ...       print the answers of a language model
  plot RUN                           draw the smoothness and the radii of a run with a SmoothnessMonitor
  compare RUN ...                    print what several runs reached, and what it cost
  completion bash | zsh | tcsh       print a script that completes commands, options, recipes and methods

  --json                             of partition, methods, recipes list and compare: print JSON instead of a table
  --version                          print the version
  --traceback                        with a command: show where a mistake was found, not only what it is

  lightning-gluon fit -c vit/base -c vit/tiny -c methods/gluon-nesterov
  lightning-gluon partition --model timm/vit_small_patch16_224
  lightning-gluon partition --model transformers/qwen2 --kwargs '{"num_hidden_layers": 2}'

A class path such as my_project.Net is searched among installed packages first and then in the working directory, and
its module is run. No other command or option looks into the working directory."""

# The module of a command and its function, imported when the command is given.
COMMANDS = {
    "fit": "train:train",
    "validate": "train:train",
    "test": "train:train",
    "predict": "train:train",
    "partition": "partition:print_partition",
    "methods": "methods:print_methods",
    "recipes": "recipes:print_recipes",
    "export": "export:export",
    "generate": "export:generate",
    "plot": "plot:plot",
    "compare": "compare:compare",
    "completion": "completion:completion",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. A mistake found before the first batch is one line; later errors come with their traceback.

    Args:
        argv: Its arguments; None takes the process's.

    Raises:
        SystemExit: If there is a mistake in the arguments, a file or a model.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    where = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        _dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter flushes once more
    except SystemExit as end:
        if where and end.__cause__ is not None:
            traceback.print_exception(end.__cause__)
        raise


def _dispatch(arguments: list[str]) -> None:
    if not arguments or {"-h", "--help"}.intersection(arguments[:1]):
        print(HELP)
    elif arguments[0] == "--version":
        print(f"lightning-gluon {__version__}")
    else:
        _command(arguments[0])(arguments)


def _command(name: str) -> Callable[[Sequence[str]], None]:
    """Import the function of a command."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        listed = ", ".join(COMMANDS)
        raise SystemExit(f"lightning-gluon: error: Expected a command out of {listed}; got {name!r}.{hint}")
    return pkgutil.resolve_name(f"lightning_gluon.cli.{COMMANDS[name]}")


if __name__ == "__main__":
    main()
