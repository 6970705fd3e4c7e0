"""Callbacks that spare pretrained weights, and images prepared as the weights expect them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from timm.optim import param_groups_layer_decay

from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.tasks import CausalLM, HeadFirst, ImageClassifier, ImageData, LayerDecay, StartDecay
from lightning_gluon.tasks.finetune import layer_depths
from tests.tasks._chat import TINY

VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 3, "num_heads": 2}


class Watch(Callback):
    """Keep the weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    on_fit_start = on_train_batch_end  # type: ignore[assignment]

    def moved(self, step: int) -> set[str]:
        one, other = self.weights[step : step + 2]
        return {name for name in one if not torch.equal(one[name], other[name])}


def fit(
    folder: Path,
    *callbacks: Callback,
    method: str = "gluon",
    steps: int = 4,
    ckpt: str | None = None,
    saving: bool = False,
    **data: Any,
) -> Trainer:
    torch.manual_seed(0)
    module = ImageClassifier("vit_tiny_patch16_224", 10, model_kwargs=VIT, gradient_checkpointing=saving)
    saver = ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[GluonOptimizer(method, lr=0.02), saver, *callbacks],
    )
    trainer.fit(module, datamodule=ImageData("digits", batch_size=32, seed=0, **data), ckpt_path=ckpt)
    return trainer


def test_depths_of_real_models() -> None:
    module = ImageClassifier("vit_tiny_patch16_224", num_classes=10, model_kwargs=VIT)
    depths = layer_depths(module)
    assert depths["net.pos_embed"] == depths["net.patch_embed.proj.weight"] == 0
    assert depths["net.blocks.2.mlp.fc1.weight"] == 3
    assert depths["net.norm.weight"] == depths["net.head.weight"] == 4
    timms = param_groups_layer_decay(module.net, layer_decay=0.5)
    scales = {parameter: group["lr_scale"] for group in timms for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        if name.startswith("net.norm."):  # which timm counts to the last block, BEiT to the head
            continue
        assert scales[parameter] == 0.5 ** (4 - depths[name])
    language = layer_depths(CausalLM("qwen2", TINY))
    assert language["net.model.embed_tokens.weight"] == 0
    assert language["net.model.norm.weight"] == 3


def test_radii_fall_towards_the_input(tmp_path: Path) -> None:
    plain, decayed = fit(tmp_path, steps=1), fit(tmp_path, LayerDecay(0.5), steps=1)
    for one, other in zip(plain.optimizers[0].param_groups, decayed.optimizers[0].param_groups, strict=True):
        depths = [layer_depths(decayed.model)[name] for name in other["param_names"]]
        assert other["radius"] == pytest.approx([one["radius"] * 0.5 ** (4 - depth) for depth in depths])
    with pytest.warns(UserWarning, match="LayerDecay leaves group 'head' as it is: AdamW steps it at one rate"):
        fit(tmp_path, LayerDecay(0.5), method="muon", steps=1)


def test_the_head_learns_first(tmp_path: Path) -> None:
    watch = Watch()
    trainer = fit(tmp_path, watch, HeadFirst(steps=2))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert watch.moved(0) == watch.moved(1) == {"net.head.weight"}
    assert "net.blocks.0.attn.qkv.weight" in watch.moved(2)


def test_weights_decay_to_where_they_began(tmp_path: Path) -> None:
    plain, pulled = Watch(), Watch()
    fit(tmp_path, plain, steps=1)
    trainer = fit(tmp_path, StartDecay(5.0), pulled, steps=1)
    (begin, moved), (_, drawn) = plain.weights, pulled.weights
    for name, weight in moved.items():
        expected = weight + 0.02 * 5.0 * (begin[name] - weight)
        torch.testing.assert_close(drawn[name], expected)
    whole = fit(tmp_path, StartDecay(50.0), steps=3)  # at lr * weight = 1 every step ends where it began
    for parameter, start in zip(whole.model.parameters(), begin.values(), strict=True):
        torch.testing.assert_close(parameter.detach(), start)
    assert trainer.global_step == 1


def test_a_method_that_rebuilds_a_point_is_not_pulled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gradients at the weights, but got the point 'transported'"):
        fit(tmp_path, StartDecay(), method="gluon-igt", steps=1)


@pytest.mark.parametrize(
    "callback", [LayerDecay(0.5), HeadFirst(steps=3), StartDecay(5.0)], ids=["decay", "head", "start"]
)
def test_resume_is_exact(tmp_path: Path, callback: Callback) -> None:
    whole = fit(tmp_path, callback)
    resumed = fit(tmp_path, callback, ckpt=str(tmp_path / "step=2.ckpt"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_recomputed_activations_change_no_step(tmp_path: Path, method: str) -> None:
    kept, recomputed = (fit(tmp_path, method=method, saving=on) for on in (False, True))
    for one, other in zip(kept.model.parameters(), recomputed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_average_of_the_weights(tmp_path: Path) -> None:
    """Lightning's own callback does it."""
    average = EMAWeightAveraging(decay=0.5)
    trainer = fit(tmp_path, average)
    assert trainer.global_step == 4


# -------------------------------------------------------------------------------------------------------------- images


def batches(**options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = ImageData("digits", batch_size=64, seed=0, **options)
    data.setup("fit")
    return list(data.train_dataloader())


def test_augmentation_is_a_function_of_seed_and_epoch() -> None:
    torch.manual_seed(1)
    plain = batches()
    after = torch.random.get_rng_state()
    for options in ({"rand_augment": 9}, {"mixup": 0.8}, {"cutmix": 1.0}):
        other = batches(**options)
        torch.manual_seed(1)
        one = batches(**options)
        assert torch.equal(after, torch.random.get_rng_state())  # as without them
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one, other, strict=True))
        assert not torch.equal(one[1][0], plain[1][0])


def test_mixed_labels_are_shares() -> None:
    for images, labels in batches(mixup=0.8, cutmix=1.0):
        assert labels.shape == (64, 10)
        torch.testing.assert_close(labels.sum(1), torch.ones(64))
        assert images.shape == (64, 1, 8, 8)
    data = ImageData("digits", batch_size=64, mixup=0.8)
    data.setup("fit")
    _, labels = next(iter(data.val_dataloader()))
    assert labels.dtype == torch.long


def test_mixed_labels_train(tmp_path: Path) -> None:
    trainer = fit(tmp_path, mixup=0.8, rand_augment=5, steps=2)
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_images_as_a_model_of_timm_expects_them() -> None:
    data = ImageData("digits", timm_model="vit_small_patch16_224.augreg_in21k_ft_in1k")
    config = timm.get_pretrained_cfg("vit_small_patch16_224.augreg_in21k_ft_in1k")
    assert data.mean == list(config.mean) == [0.5, 0.5, 0.5]
    assert data.image_size == config.input_size[-1]
    own = ImageData("digits", timm_model="vit_small_patch16_224", image_size=32, mean=[0.1])
    assert (own.mean, own.image_size) == ([0.1], 32)
    with pytest.raises(ValueError, match=r"`timm_model` to be a model that timm has weights of, but got 'vit_nano'"):
        ImageData("digits", timm_model="vit_nano")
