"""Image classification with any model of timm."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.fabric.utilities.throughput import measure_flops
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lightning_gluon.extras import require
from lightning_gluon.tasks.checkpoints import task_notes
from lightning_gluon.tasks.export import card, export_image_model
from lightning_gluon.tasks.optimizer import OptimizerByCallback
from lightning_gluon.tasks.sharding import shard
from lightning_gluon.valid import number, whole

__all__ = ["ImageClassifier"]


class ImageClassifier(OptimizerByCallback):
    """A timm model trained with cross-entropy.

        loss = - mean_i sum_c q_ic log p_c(x_i),    q = (1 - label_smoothing) onehot(y) + label_smoothing / classes

    Shapes: images `(batch, channels, height, width)`; labels `(batch,)`, or mixed ones `(batch, classes)`.

    Args:
        name: Name of a timm model, such as `vit_small_patch16_224`; `hf-hub:<id>` and `local-dir:<folder>` work too.
        num_classes: Number of classes.
        pretrained: Whether to load the model's weights from the hub.
        model_kwargs: Further arguments of `timm.create_model`, such as `img_size` or `embed_dim`.
        label_smoothing: Probability that is spread over the wrong classes.
        gradient_checkpointing: Whether to recompute activations in the backward pass.
        compile: Whether to compile the network.
        sharding: Arguments of `lightning_gluon.tasks.sharding.shard`, for a strategy that cuts weights over ranks.

    Raises:
        ValueError: If timm does not know the model or its arguments, or a number is out of range.
        ConnectionError: If weights or the configuration of an id cannot be fetched.

    References:
        R. Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.

    Example:
        >>> kwargs = dict(img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=1, num_heads=2)
        >>> model = ImageClassifier("vit_tiny_patch16_224", num_classes=10, model_kwargs=kwargs)
        >>> tuple(model(torch.zeros(2, 1, 8, 8)).shape)
        (2, 10)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.export(Path(folder), notes={"images": {"mean": [0.5], "std": [0.5]}})
        ...     (Path(folder) / "config.json").exists()
        True
    """

    def __init__(
        self,
        name: str = "vit_small_patch16_224",
        num_classes: int = 1000,
        pretrained: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        sharding: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        whole(1)("num_classes", num_classes)
        number(0, 1)("label_smoothing", label_smoothing)
        self.save_hyperparameters()
        self.net = _create(name, num_classes, pretrained, model_kwargs or {})
        if gradient_checkpointing:
            self.net.set_grad_checkpointing()
        if compile:
            self.net.compile()
        self.num_classes = num_classes
        self.loss = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (accuracy.clone() for _ in range(3))
        self.sharding = sharding or {}
        self._unsharded: list[torch.nn.Module] = []
        self._flops_per_image: float | None = None
        self._images = 0

    def configure_model(self) -> None:
        """Cut the weights over the ranks, if the strategy asks for it."""
        if self.device_mesh is not None and not self._unsharded:
            self._unsharded = [copy.deepcopy(self.net).to("meta")]  # a sharded network cannot be copied, to count on
        shard(self, **self.sharding)

    def setup(self, stage: str) -> None:
        """Check that the data fits the model.

        Args:
            stage: Lightning's name of what is about to run.

        Raises:
            ValueError: If the data has more classes than the model.
        """
        data = getattr(self.trainer, "datamodule", None)
        classes = getattr(data, "num_classes", None)
        if classes is not None and classes > self.num_classes:
            raise ValueError(
                f"Expected `num_classes` >= the data's {classes} classes, but got num_classes={self.num_classes}. "
                f"Set model.init_args.num_classes to {classes}."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint stand alone: it says how its images were prepared, and its weights need no other file.

        Args:
            checkpoint: Lightning's.
        """
        checkpoint["task"] = self._notes()
        if "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "pretrained": False}

    def _notes(self) -> dict[str, Any]:
        data: Any = getattr(self.trainer, "datamodule", None)
        images = {name: getattr(data, name, None) for name in ("mean", "std")}
        return {**task_notes(self), "images": {name: value for name, value in images.items() if value is not None}}

    def export(self, folder: Path, *, merge: bool = False, **run: Any) -> None:
        """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, with a model card.

        Args:
            folder: An empty folder.
            merge: Of no effect: there are no adapters.
            **run: `notes` and `groups` of the run; the module's Trainer has the rest.
        """
        notes = run.get("notes") or self._notes()
        arguments = self.hparams["model_kwargs"] or {}
        export_image_model(self.net, folder, model_args=arguments, **notes["images"])
        text = card(self.hparams["name"], notes, run.get("groups", ()), library="timm")
        (folder / "README.md").write_text(text, encoding="utf-8")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(batch, num_classes)`."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of a batch and log it with the accuracy."""
        images, labels = batch
        self._measure(images)
        logits = self(images)
        loss = self.loss(logits, labels)
        self.train_accuracy(logits, _classes_of(labels))
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        images, labels = batch
        self._images = len(images)
        logits = self(images)
        accuracy: Any = getattr(self, f"{split}_accuracy")
        accuracy(logits, labels)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=len(images), sync_dist=True)
        self.log(f"{split}/accuracy", accuracy, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of held-out images."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of test images."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the most likely class of every image."""
        return self(batch[0]).argmax(-1)

    def _measure(self, images: Tensor) -> None:
        self._images = len(images)
        if self._flops_per_image is None:
            network = self._unsharded[0] if self._unsharded else self.net
            self._flops_per_image = _flops(network, images[:1])

    @property
    def flops_per_batch(self) -> int:
        """Operations of a training batch (forward and backward, 2 per multiply-add), or of a forward pass alone."""
        share = 1.0 if self.training else 1 / 3  # a backward pass costs two forward passes
        return int(share * (self._flops_per_image or 0) * self._images)


def _classes_of(labels: Tensor) -> Tensor:
    """Return the classes of labels, or of shares of classes the largest."""
    if labels.is_floating_point():
        return labels.argmax(-1)
    return labels


def _create(name: str, num_classes: int, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    timm = require("timm")
    source = _source(timm, name)
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except TypeError as error:
        raise ValueError(f"Expected `model_kwargs` that '{name}' takes, but got {kwargs}: {error}") from error
    except Exception as error:  # the hub's client raises a dozen unrelated types when there is no network
        if source == "local-dir":
            raise ValueError(f"Expected a folder with a model of timm, but '{name}' is none: {error}") from error
        if source is None and not pretrained:
            raise
        raise ConnectionError(
            f"Expected to load '{name}' from the hub, but: {type(error).__name__}: {error} Without a "
            "network give a model of timm with pretrained=false, and the embedded data source='digits'."
        ) from error


def _source(timm: ModuleType, name: str) -> str | None:
    """Return where timm finds a model: None for its own, whose name is checked, else `hf-hub` or `local-dir`."""
    try:
        source, model = timm.models.parse_model_name(name)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"Expected `name` to be a model of timm, but got {name!r}: {error}") from error
    if source is not None:
        return source
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(
            f"Expected `name` to be a model of timm, but got {name!r}. Similar names: "
            f"{_alike(architecture, timm.list_models())}."
        )
    weights = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and model not in weights:
        raise ValueError(
            f"Expected `name` to have weights that timm knows, but got {name!r}. Similar names: "
            f"{_alike(model, weights)}."
        )
    return None


def _alike(name: str, known: list[str]) -> list[str]:
    """Return up to five names that begin like `name` or are spelt like it."""
    alike = [model for model in known if model.startswith(name[:-1])]
    alike += difflib.get_close_matches(name.lower(), known, n=5)
    return list(dict.fromkeys(alike))[:5]


def _flops(net: torch.nn.Module, image: Tensor) -> float:
    """Count the operations of one image's forward and backward pass, on the meta device."""
    hooks = net.__dict__.get("_compiled_call_impl")
    net.__dict__["_compiled_call_impl"] = None  # a compiled graph is invisible to the counter
    try:
        meta = copy.deepcopy(net).to("meta").train()
        shape = torch.empty_like(image, device="meta", dtype=torch.float32)
        return float(measure_flops(meta.float(), lambda: meta(shape), loss_fn=torch.Tensor.sum))
    except (NotImplementedError, RuntimeError):  # an operation without a meta kernel: no MFU, nothing else is lost
        return 0.0
    finally:
        net.__dict__["_compiled_call_impl"] = hooks
