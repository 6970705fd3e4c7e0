"""Smoothness seen while training: samples per layer and role, logged, written to a file, fitted as they come."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gluon.radius.saved import Saved
from lightning_gluon.replay.lightning import callbacks_of, check_log, is_trial, log_values, should_log, state_key
from lightning_gluon.replay.optimizers import own_optimizer, repeatable, unwrapped
from lightning_gluon.replay.session import Session
from lightning_gluon.smoothness import plots
from lightning_gluon.smoothness.fit import PENALTY, RunningFit
from lightning_gluon.smoothness.readings import FIT_KEYS, Pair, Raw, combine, derive, measure
from lightning_gluon.smoothness.sample_file import FIRST, SampleFile, check_file_name
from lightning_gluon.step.layers import Layer
from lightning_gluon.valid import number, whole


def choose_layers(layers: Sequence[Layer], patterns: str | Sequence[str] | None) -> list[Layer]:
    """Return the layers whose name or role matches a pattern.

    Args:
        layers: All layers.
        patterns: Shell patterns such as `"blocks.3.*"`, role names such as `"hidden"`, or `None` for all.

    Returns:
        The chosen layers, in their order.

    Raises:
        ValueError: If a pattern matches nothing, or there is none.
    """
    if patterns is None:
        return list(layers)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError("Expected `layers` to be names, shell patterns or roles, or `None` for all, but got none.")
    chosen: set[Tensor] = set()
    for pattern in patterns:
        found = [layer.parameter for layer in layers if _matches(layer, pattern)]
        if not found:
            some = ", ".join(repr(layer.name) for layer in layers[:3])
            roles = ", ".join(dict.fromkeys(layer.role for layer in layers))
            raise ValueError(
                f"Expected every entry of `layers` to match a layer, but {pattern!r} matches none. There are roles "
                f"{roles} and layers such as {some}."
            )
        chosen.update(found)
    return [layer for layer in layers if layer.parameter in chosen]


def _matches(layer: Layer, pattern: str) -> bool:
    return layer.role == pattern or fnmatchcase(layer.name, pattern)


class SmoothnessMonitor(Callback):
    """Measure layer-wise smoothness every so many steps; the run itself stays the same, bit for bit.

        L_hat[k] = ||c_new - c_old||_* / ||X^k - X^{k-1}||,     fitted by L0 + L1 ||g^k||_*      per layer and per role

    Both gradients belong to the same sample. Methods that take the second gradient give it for free. For all others one
    more forward and backward pass is run every `every_n_steps`, as silently as the second pass of `VarianceReduction`.
    Under manual optimization, `step(closure)` included, and with `training_step(dataloader_iter)` a step cannot be
    repeated: only the trajectory estimate is left there. The cost is one step and five decompositions of the chosen
    matrices, every `every_n_steps`. In the step before, the weights are copied, unless the method keeps them.

    Keys are `smoothness/<reading>/<role>`, and with `per_layer` also `smoothness/<reading>/<layer>`. The readings,
    their meaning and their units are the table in `lightning_gluon.smoothness.readings`. Every sample is a line of
    `smoothness.jsonl` in the run's folder. It holds `step` (steps taken before), `role`, `layer` (`null`: the whole
    role), `radius` (`lr * radius`, the nominal step length; of a role the largest) and the readings (`null`: none).

    A monitor never ends a run. If the file cannot be written, one warning says so, and training goes on.

    Args:
        every_n_steps: Optimizer steps between two samples (`k` above is every such step).
        layers: Layers to measure: names, shell patterns or roles; default: all.
        per_layer: Log every layer, next to the roles.
        same_sample: Take the probe pass; without it only the trajectory estimate is available to one-gradient methods.
        exact: Take singular values for spectral and nuclear norms; default: on the CPU
            (`lightning_gluon.smoothness.readings`).
        window: Samples that the running fit of `L0`, `L1` is over.
        penalty: Weight of samples above the fit.
        log: Whether to log; default: if the Trainer has a logger.
        save: Whether to write `smoothness.jsonl`.
        figures: Draw the pictures at the end of training: PNG files next to the samples, figures in TensorBoard.

    Raises:
        ValueError: If an argument is out of range, or `figures` are asked for without `save`; at the start of training
            if a pattern matches no layer, or if logging is asked for without a logger; on loading if a checkpoint holds
            values that no monitor has written.
        ImportError: At the start of training, if `figures` are asked for without matplotlib.
        TypeError: At the start of training, if the optimizer is not one of this library.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> import lightning_gluon, tempfile
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> class Model(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 2)
        ...     def training_step(self, batch, batch_idx):
        ...         return self.layer(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return lightning_gluon.configure_optimizers(self, lr=0.02)
        >>> monitor = SmoothnessMonitor(every_n_steps=2, layers="hidden")
        >>> parts = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        >>> quiet = dict.fromkeys(parts, False)
        >>> where = {"accelerator": "cpu", "default_root_dir": tempfile.mkdtemp()}
        >>> trainer = Trainer(callbacks=[monitor], max_steps=4, **quiet, **where)
        >>> trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4))
        >>> [sample["step"] for sample in plots.read_samples(monitor.path) if not sample["layer"]]
        [1, 3]
        >>> sorted(file.name for file in monitor.plot())
        ['smoothness_hidden.png', 'smoothness_radii.png']
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        layers: str | Sequence[str] | None = None,
        *,
        per_layer: bool = False,
        same_sample: bool = True,
        exact: bool | None = None,
        window: int = 200,
        penalty: float = PENALTY,
        log: bool | None = None,
        save: bool = True,
        figures: bool = False,
    ) -> None:
        self.every_n_steps = whole(1)("every_n_steps", every_n_steps)
        RunningFit(window, penalty)  # checks both
        if figures and not save:
            raise ValueError("`figures=True` draws the samples that `save=True` writes: leave one out, or keep both.")
        self.layers = layers
        self.per_layer = per_layer
        self.same_sample = same_sample
        self.exact = exact
        self.window = window
        self.penalty = penalty
        self.logging = log  # Lightning sets `log` on callbacks
        self.save = save
        self.figures = figures
        self.steps = 0
        self.fits: dict[str, RunningFit] = {}
        self._pending: dict[str, float] = {}
        self._name = FIRST
        self._samples: SampleFile | None = None
        self._session: Session | None = None
        self._trainer: Trainer | None = None
        self._again = self._logs = self._warned = False

    @property
    def state_key(self) -> str:
        """Tell instances apart by their measurements."""
        return state_key(self, every_n_steps=self.every_n_steps, layers=str(self.layers))

    @property
    def path(self) -> Path | None:
        """The file of the samples; `None` before training, without `save`, and on all ranks but the first."""
        if self._samples is None:
            return None
        return self._samples.path

    # ------------------------------------------------------------------ begin and end

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the session, before it reads a checkpoint."""
        self._session = Session.of(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the layers and open the file."""
        choose_layers(own_optimizer(trainer).layers(), self.layers)
        self._logs = check_log(trainer, self.logging, "SmoothnessMonitor")
        if self.figures:
            plots.require_matplotlib()
        self._trainer = trainer
        self._again = self.same_sample and repeatable(pl_module)
        if self.same_sample and not self._again:
            rank_zero_warn(
                "`SmoothnessMonitor` cannot repeat a training step under manual optimization, nor one that draws its "
                "own batch: only the trajectory estimate, which holds the noise of two minibatches, is measured."
            )
        if self.save and not is_trial(trainer):
            self._open(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the pictures, if asked to."""
        if not self.figures or self.path is None:  # on another rank
            return
        try:
            if self.path.exists():
                self.plot()
            else:
                rank_zero_warn("`SmoothnessMonitor` has nothing to draw: training ended before the first sample.")
        except OSError as error:
            rank_zero_warn(f"`SmoothnessMonitor` could not save its pictures: {error}.")

    def _open(self, trainer: Trainer) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asked for on all ranks, which agree on it
        if not trainer.is_global_zero:
            return
        taken = []
        for other in callbacks_of(trainer):
            if isinstance(other, SmoothnessMonitor) and other is not self and other.path is not None:
                taken.append(other.path)
        self._samples = SampleFile.begin(folder, self._name, self.steps, taken)
        self._name = self._samples.path.name

    # ------------------------------------------------------------------ one step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        """Take the sample that is due, and ask for the needs of the next step's sample."""
        session = self._session
        if session is None or session.optimizer is None or unwrapped(optimizer) is not session.optimizer:
            return
        layers = choose_layers(session.optimizer.layers(), self.layers)  # some may have been unfrozen
        if self._due:
            self._sample(session.pairs(layers))
        self.steps += 1
        if self._due:
            session.want(layers, again=self._again)
        if self._logs and self._pending and should_log(trainer):
            log_values(trainer, self._pending)
            self._pending = {}

    @property
    def _due(self) -> bool:
        return (self.steps + 1) % self.every_n_steps == 0

    def _sample(self, pairs: list[Pair]) -> None:
        try:
            raws = measure(pairs, exact=self.exact)
        except torch.linalg.LinAlgError as error:
            self._warn(f"A sample of the smoothness at step {self.steps} is left out: {error}")
            return
        if not all(math.isfinite(raw["grad"]) for raw in raws):
            return  # an overflowing loss scale: this step is not taken
        rows = [self._row(reading) for reading in readings_of(pairs, raws)]
        if self._samples is not None and rows:
            self._samples.append(rows)

    def _warn(self, message: str) -> None:
        if not self._warned:
            warnings.warn(message, stacklevel=2)
        self._warned = True

    def _row(self, reading: RawReading) -> dict[str, Any]:
        """Add one sample to its fit and to the pending log, and return it as a line of the file."""
        values = derive(reading.raw)
        values.update(self._fitted(reading.fit, values))
        row: dict[str, Any] = {
            "step": self.steps,
            "role": reading.role,
            "layer": reading.layer,
            "radius": reading.radius,
        }
        logged = reading.layer is None or self.per_layer
        name = reading.layer or reading.role
        for key, value in values.items():
            finite = math.isfinite(value)
            row[key] = value if finite else None
            if finite and logged:
                self._pending[f"smoothness/{key}/{name}"] = value
        return row

    def _fitted(self, name: str, values: dict[str, float]) -> dict[str, float]:
        """Return the constants of a running fit, with the present sample in it."""
        if name not in self.fits:
            self.fits[name] = RunningFit(self.window, self.penalty)
        running = self.fits[name]
        running.add(values["L_hat"], values["grad_dual_norm"])
        fit = running.fit()
        if fit is None:
            return dict.fromkeys(FIT_KEYS, math.nan)
        return {key: getattr(fit, key) for key in FIT_KEYS}

    # ------------------------------------------------------------------ after the run

    def plot(self, path: str | Path | None = None) -> list[Path]:
        """Draw estimate against fit, L1 by depth and the radii from the samples of the run.

        The figures are also added to the Trainer's TensorBoard loggers, if it has any.

        Args:
            path: Folder for the PNG files; default: the folder of the samples.

        Returns:
            The files.

        Raises:
            ValueError: If no sample was written.
        """
        if self.path is None or not self.path.exists():
            raise ValueError(
                "There is nothing to plot: no sample was written. Train with `save=True` for `every_n_steps` steps."
            )
        samples = plots.read_samples(self.path)
        stem, figures = self.path.stem, {}
        for name, figure in plots.smoothness_figures(samples).items():
            figures[name.replace("smoothness", stem, 1)] = figure
        for logger in self._trainer.loggers if self._trainer is not None else ():
            experiment = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_figure"):
                plots.to_tensorboard(figures, experiment, self.steps)
        folder = self.path.parent if path is None else Path(path)
        return plots.save(figures, folder)

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the fits' samples and the place they are written to, as plain values."""
        return {
            "steps": self.steps,
            "fits": {name: running.state_dict() for name, running in self.fits.items()},
            "pending": dict(self._pending),
            "file": self._name,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them, or raise a `ValueError` before anything has changed."""
        saved = Saved(state, "SmoothnessMonitor")
        steps, name = saved.whole("steps"), check_file_name(saved.value("file"))
        fits = {}
        columns = Saved(saved.value("fits"), "SmoothnessMonitor.fits")
        for key, samples in columns.state.items():
            fits[key] = RunningFit(self.window, self.penalty)
            fits[key].load_state_dict(samples)
        waiting = Saved(saved.value("pending"), "SmoothnessMonitor.pending")
        finite = number(-math.inf, signs="< <")
        pending = {key: waiting.number(key, finite) for key in waiting.state}
        self.steps, self._name = steps, name
        self.fits, self._pending = fits, pending


@dataclass(frozen=True)
class RawReading:
    """The raw values of one layer, or of a whole role.

    Args:
        role: The role.
        layer: Name of the layer; `None` for the role.
        radius: Nominal length of the step.
        raw: Norms and products.
    """

    role: str
    layer: str | None
    radius: float
    raw: Raw

    @property
    def fit(self) -> str:
        """Name of the running fit."""
        if self.layer is None:
            return self.role
        return f"layer {self.layer}"


def readings_of(pairs: Iterable[Pair], raws: Iterable[Raw]) -> Iterator[RawReading]:
    """Yield every role, followed by its layers."""
    members: dict[str, list[RawReading]] = {}
    for pair, raw in zip(pairs, raws, strict=True):
        layer = pair.layer
        reading = RawReading(layer.role, layer.name, layer.step_length, raw)
        members.setdefault(layer.role, []).append(reading)
    for role, readings in members.items():
        radius = max(reading.radius for reading in readings)
        raw = combine(reading.raw for reading in readings)
        yield RawReading(role, None, radius, raw)
        yield from readings
