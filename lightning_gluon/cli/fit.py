"""`lightning-gluon`: Lightning's command line with optimizers by method name, for any LightningModule."""

from __future__ import annotations

from contextlib import suppress
from pickle import UnpicklingError
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_gluon.callbacks.gluon_optimizer import GluonOptimizer
from lightning_gluon.cli.count_epochs import CountEpochs
from lightning_gluon.cli.parser import GluonParser
from lightning_gluon.cli.progress import StepProgressBar
from lightning_gluon.cli.summary import FitSummary

__all__ = ["CommandCLI", "GluonCLI", "ModelCLI", "ParserCLI"]


class GluonCLI(LightningCLI):
    """`LightningCLI` with an `optimizer` section that holds the arguments of `lightning_gluon.configure_optimizers`.

    The stock CLI hands bare parameters to an optimizer class; this one asks the module, late. So names and module
    types are known, weights may be sharded, and schedules run per step. A module that has its own
    `configure_optimizers` keeps it unless `optimizer.lr` is given.

    Args:
        *args: Arguments of `LightningCLI`.
        **kwargs: Arguments of `LightningCLI`.

    Raises:
        ValueError: If a module is to be fitted that has no `configure_optimizers`, and no `optimizer.lr` is given.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> options = ["--optimizer.method=muon", "--optimizer.lr=0.02", "--trainer.logger=false"]
        >>> cli = GluonCLI(BoringModel, args=options, run=False)
        >>> type(cli.model.configure_optimizers()).__name__
        'Gluon'
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["auto_configure_optimizers"] = False
        kwargs.setdefault("parser_class", GluonParser)
        kwargs.setdefault("save_config_kwargs", {"overwrite": True})
        defaults = dict(kwargs.get("trainer_defaults") or {})
        callbacks = defaults.get("callbacks") or []
        defaults["callbacks"] = [*(callbacks if isinstance(callbacks, list) else [callbacks]), CountEpochs()]
        kwargs["trainer_defaults"] = defaults
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the `optimizer` section.

        Args:
            parser: The parser of a subcommand.
        """
        parser.add_class_arguments(GluonOptimizer, "optimizer")

    def _parse_ckpt_path(self) -> None:
        """Let Lightning take the model's arguments from a checkpoint, but not another model."""
        wanted, given = self._model_and_checkpoint()
        try:
            super()._parse_ckpt_path()
        except (EOFError, RuntimeError, UnpicklingError) as error:
            raise ValueError(
                f"Expected `ckpt_path` to be a whole checkpoint, but '{given}' cannot be read. It is cut off or no "
                "checkpoint: take another one."
            ) from error
        found, checkpoint = self._model_and_checkpoint()
        if found != wanted:
            raise ValueError(
                f"Expected `ckpt_path` to be a checkpoint of {wanted}, but '{checkpoint}' is one of {found}. Give the "
                "configuration that was saved with its run: `-c config.yaml`."
            )

    def _model_and_checkpoint(self) -> tuple[str | None, str | None]:
        command = str(self.config.get("subcommand"))
        section = self.config.get(command) or {}
        model = section.get("model") or {}
        return model.get("class_path"), section.get("ckpt_path")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer, and attach the optimizer to the model."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__ from None  # what the model or the data says, without jsonargparse's reading of it
        if getattr(self.trainer, "fast_dev_run", False):  # Lightning 2.6.6 writes `last.ckpt` even then
            for saver in self.trainer.checkpoint_callbacks:
                saver.save_last = None  # type: ignore[attr-defined]
        self._attach_optimizer()

    def _attach_optimizer(self) -> None:
        optimizer: GluonOptimizer = self._get(self.config_init, "optimizer")
        if optimizer.active:
            optimizer.bind(self.model)
        elif self.subcommand != "fit":
            return
        elif is_overridden("configure_optimizers", self.model):
            optimizer.warn_if_idle()
        else:
            kind = type(self.model).__name__
            raise ValueError(
                f"Expected `optimizer.lr`, since {kind} has no `configure_optimizers`. Add a "
                "method (`-c methods/gluon-nesterov`) or `--optimizer.lr 0.02`."
            )


class CommandCLI(GluonCLI):
    """The CLI behind a command of `lightning-gluon`, whose arguments are those of the process.

    Args:
        args: Arguments, the command first.
        callbacks: Callbacks of the Trainer that no configuration names.
        **kwargs: Further arguments of `LightningCLI`.
    """

    def __init__(self, args: list[str], callbacks: list[Callback] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("parser_kwargs", {"prog": "lightning-gluon"})
        super().__init__(args=args, trainer_defaults={"callbacks": callbacks or []}, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; the parent warns if the process has others.

        Args:
            parser: The parser.
            args: The arguments.
        """
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a fit ends with a summary, and its bar counts to the last step."""
        super().instantiate_classes()
        settings = self._get(self.config_init, "optimizer").settings
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(FitSummary(settings["method"], settings["lr"]))
        for place, callback in enumerate(callbacks):
            if type(callback) is RichProgressBar:  # Lightning's default; another one is the user's choice
                callbacks[place] = StepProgressBar()


class ParserCLI(CommandCLI):
    """The parser of a command line that runs nothing."""

    def __init__(self) -> None:
        with suppress(StopIteration):
            super().__init__([])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """End the construction where the parser is complete.

        Args:
            parser: The parser.
            args: Nothing.

        Raises:
            StopIteration: Always.
        """
        raise StopIteration


class ModelCLI(CommandCLI):
    """The model that a configuration of `fit` describes, built without a Trainer.

    Args:
        args: The arguments of `fit`, without the word.
    """

    def __init__(self, args: list[str]) -> None:
        names = {"prog": "lightning-gluon partition"}
        super().__init__(args, run=False, save_config_callback=None, seed_everything_default=False, parser_kwargs=names)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the `optimizer` section, and the other entries of the configuration saved with a run.

        Args:
            parser: The parser.
        """
        super().add_arguments_to_parser(parser)
        for key in ("ckpt_path", "weights_only"):
            parser.add_argument(f"--{key}", type=Any, default=None)

    def instantiate_classes(self) -> None:
        """Build the model."""
        self.model = self._get(self.parser.instantiate_classes(self.config), "model")
