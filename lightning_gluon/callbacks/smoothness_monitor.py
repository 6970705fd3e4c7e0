"""Smoothness seen while training: samples per layer and role, logged, written to a file, fitted as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_gluon.replay.lightning import check_log, log_values, should_log
from lightning_gluon.replay.probe import Probe, own_optimizer, unwrapped
from lightning_gluon.replay.probing import Probing, loss_scale, repeatable
from lightning_gluon.smoothness import plots
from lightning_gluon.smoothness.fit import PENALTY, RunningFit
from lightning_gluon.smoothness.readings import FIT_KEYS, combine, derive, measure
from lightning_gluon.step.layers import Layer

__all__ = ["SmoothnessMonitor", "choose_layers"]


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
    chosen = []
    for pattern in patterns:
        found = [layer for layer in layers if layer.role == pattern or fnmatchcase(layer.name, pattern)]
        if not found:
            some = ", ".join(repr(layer.name) for layer in layers[:3])
            raise ValueError(
                f"Expected every entry of `layers` to match a layer, but {pattern!r} matches none. There are roles "
                f"{', '.join(dict.fromkeys(layer.role for layer in layers))} and layers such as {some}."
            )
        chosen += found
    return [layer for layer in layers if any(layer is other for other in chosen)]


class SmoothnessMonitor(Probing):
    """Measure layer-wise smoothness every so many steps; the run itself stays the same, bit for bit.

        L_hat[k] = ||c_new - c_old||_* / ||X^k - X^{k-1}||,     fitted by L0 + L1 ||g^k||_*      per layer and per role

    Both gradients belong to the same sample. Methods that take the second gradient give it for free, for all others one
    more forward and backward pass is run, every `every_n_steps`, as silently as the second pass of `VarianceReduction`.
    Under manual optimization, `step(closure)` included, and with `training_step(dataloader_iter)` a step cannot be
    repeated; only the trajectory estimate is left there. The cost is one step and five decompositions of the chosen
    matrices, every `every_n_steps`; in the step before, the weights are copied.

    Keys: `smoothness/<reading>/<role>`, and with `per_layer` also `smoothness/<reading>/<layer>`; the readings, their
    meaning and units are the table in `lightning_gluon.smoothness.readings`. Every sample is a line of
    `smoothness.jsonl` in the run's folder, with `step` (steps taken before), `role`, `layer` (`null`: the whole role),
    `radius`
    (`lr * radius`, the nominal step length; of a role the largest) and the readings, `null` where there is none.

    Args:
        every_n_steps: Optimizer steps between two samples.
        layers: Layers to measure: names, shell patterns or roles; default: all.
        per_layer: Log every layer, beside the roles.
        same_sample: Take the probe pass; without it only the trajectory estimate is available to one-gradient methods.
        exact: Take singular values for spectral and nuclear norms; default: on the CPU
            (`lightning_gluon.smoothness.readings`).
        window: Samples that the running fit is over.
        penalty: Weight of samples above the fit.
        log: Whether to log; default: if the Trainer has a logger.
        save: Whether to write `smoothness.jsonl`.
        figures: Draw the pictures at the end of training: PNG files beside the samples, figures in TensorBoard.

    Raises:
        ValueError: If an argument is out of range, or `figures` are asked for without `save`; at the start of training
            if a pattern matches no layer, or if logging is asked for without a logger.
        ImportError: At the start of training, if `figures` are asked for without matplotlib.
        TypeError: At the start of training, if the optimizer is not one of this library.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> monitor = SmoothnessMonitor(every_n_steps=100, layers=["hidden", "head"])
        >>> monitor.every_n_steps
        100
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
        super().__init__(every_n_steps)
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
        self.path: Path | None = None
        self._file = "smoothness.jsonl"
        self.fits: dict[str, RunningFit] = {}
        self._pending: dict[str, float] = {}
        self._loaded: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Tell instances apart by what they measure."""
        return self._generate_state_key(every_n_steps=self.every_n_steps, layers=str(self.layers))

    # ------------------------------------------------------------------ begin and end

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Choose the layers, open the file, and listen to `training_step`."""
        optimizer = own_optimizer(trainer)
        layers = choose_layers(optimizer.layers(), self.layers)
        self._logs = check_log(trainer, self.logging, "SmoothnessMonitor")
        if self.figures:
            plots.require_matplotlib()
        self._trainer = trainer
        probing = self.same_sample and repeatable(pl_module)
        if self.same_sample and not probing:
            rank_zero_warn(
                "`SmoothnessMonitor` cannot repeat a training step under manual optimization, nor one that draws its "
                "own batch: only the trajectory estimate, which holds the noise of two minibatches, is measured."
            )
        self._probe = Probe(optimizer, layers, same_sample=probing)
        if self._loaded is not None:
            self._probe.load_state_dict(self._loaded)
            self._loaded = None
        if self._probe.probing:
            self._listen()
        if self.save and not trainer.fast_dev_run:  # which leaves no files
            self._open(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the pictures, if asked to."""
        if self.figures and self.path is not None:  # on the first rank
            if self.path.exists():
                self.plot()
            else:
                rank_zero_warn("`SmoothnessMonitor` has nothing to draw: training ended before the first sample.")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the Trainer as it was, but keep the state: a checkpoint may be saved after this."""
        self._loaded = self._probe.state_dict() if self._probe is not None else self._loaded
        self._release()

    def _open(self, trainer: Any) -> None:
        """Continue the file of a resumed run behind its last sample, or begin one that no other run or monitor has."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # the same on all ranks
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        others = [other.path for other in trainer.callbacks if isinstance(other, SmoothnessMonitor) and other != self]
        self.path, count = folder / self._file, 2
        if self.steps and self.path.exists() and self.path not in others:
            kept = [sample for sample in plots.samples_in(self.path) if sample["step"] < self.steps]
            if kept:
                self.path.write_text("".join(json.dumps(sample) + "\n" for sample in kept))
                return
        while self.path.exists() or self.path in others:
            self.path, count = folder / f"smoothness_{count}.jsonl", count + 1
        self._file = self.path.name

    # ------------------------------------------------------------------ one step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Take the sample that is due, and copy the weights if the next step's sample will need them."""
        probe = self._probe
        if probe is None or unwrapped(optimizer) is not probe.optimizer:
            return
        if self._due(self.steps) and probe.ready:
            self._sample(probe, loss_scale(trainer))
        self.steps += 1
        if self._due(self.steps):
            probe.layers = choose_layers(probe.optimizer.layers(), self.layers)  # some may have been unfrozen
            # The copy is of this step's own weights: they are X^{k-1} when the next step's gradients are there.
            probe.remember()
        if self._logs and self._pending and should_log(trainer):
            log_values(trainer, self._pending)
            self._pending = {}

    def _sample(self, probe: Probe, scale: float) -> None:
        pairs = probe.pairs(scale)
        raws = measure(pairs, exact=self.exact)
        if not all(math.isfinite(raw["grad"]) for raw in raws):
            return  # an overflowing loss scale: this step is not taken
        rows = []
        for role in dict.fromkeys(pair.layer.role for pair in pairs):
            members = [(p.layer, raw) for p, raw in zip(pairs, raws, strict=True) if p.layer.role == role]
            radius = max(layer.step_length for layer, _ in members)
            rows.append(self._row(role, None, radius, combine(raw for _, raw in members)))
            rows += [self._row(role, layer.name, layer.step_length, raw) for layer, raw in members]
        if self.path is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def _row(self, role: str, layer: str | None, radius: float, raw: dict[str, float]) -> dict[str, Any]:
        """Add one sample to its fit and to the pending log, and return it as a line of the file."""
        readings = derive(raw)
        running = self.fits.setdefault(f"layer {layer}" if layer else role, RunningFit(self.window, self.penalty))
        running.add(readings["L_hat"], readings["grad_dual_norm"])
        fit = running.fit()
        readings |= {key: getattr(fit, key) if fit else math.nan for key in FIT_KEYS}
        if layer is None or self.per_layer:
            self._pending.update({f"smoothness/{key}/{layer or role}": value for key, value in readings.items()})
        plain = {key: value if math.isfinite(value) else None for key, value in readings.items()}
        return {"step": self.steps, "role": role, "layer": layer, "radius": radius, **plain}

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
        drawn = plots.smoothness_figures(plots.read_samples(self.path))
        figures = {name.replace("smoothness", self.path.stem, 1): figure for name, figure in drawn.items()}
        for logger in getattr(self._trainer, "loggers", ()):
            if hasattr(getattr(logger, "experiment", None), "add_figure"):
                plots.to_tensorboard(figures, logger.experiment, self.steps)
        return plots.save(figures, Path(path) if path is not None else self.path.parent)

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the fits' samples, and the copies of a sample about to be taken."""
        return {
            "steps": self.steps,
            "fits": {name: running.state_dict() for name, running in self.fits.items()},
            "pending": dict(self._pending),
            "file": self._file,
            "probe": self._probe.state_dict() if self._probe is not None else self._loaded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.steps = state["steps"]
        self.fits = {}
        for name, saved in state["fits"].items():
            self.fits[name] = RunningFit(self.window, self.penalty)
            self.fits[name].load_state_dict(saved)
        self._pending = dict(state["pending"])
        self._file = state["file"]
        self._loaded = state["probe"]
