"""Small models of timm and transformers with random weights: many kinds of layers, no network, seconds on one core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["ARCHITECTURES", "Architecture"]

CLASSES, VOCABULARY, TOKENS = 10, 99, 24
Batch = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A model by name and options, and what it is fed."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    library: ClassVar[str] = "ours"

    def build(self) -> nn.Module:
        """Return the model with random weights."""
        raise NotImplementedError

    def batch(self, random: torch.Generator) -> Batch:
        """Return one batch."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss on a batch."""
        raise NotImplementedError


@dataclass(frozen=True)
class Timm(Architecture):
    """A model of timm on eight square images."""

    size: int = 64
    library: ClassVar[str] = "timm"

    def build(self) -> nn.Module:
        """Return the model with random weights."""
        import timm

        return timm.create_model(self.name, num_classes=CLASSES, **self.options)

    def batch(self, random: torch.Generator) -> Batch:
        """Return images and labels."""
        images = torch.randn(8, 3, self.size, self.size, generator=random)
        return {"x": images, "y": torch.randint(CLASSES, (8,), generator=random)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of the first logits."""
        found = model(batch["x"])
        logits = found if isinstance(found, Tensor) else found[0]
        return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch["y"])


@dataclass(frozen=True)
class LongTable(Timm):
    """A mixer behind a class token and a table of 4096 positions."""

    library: ClassVar[str] = "ours"

    def build(self) -> nn.Module:
        """Return the model with random weights."""
        return Positions()

    def batch(self, random: torch.Generator) -> Batch:
        """Return sequences and labels."""
        patches = torch.randn(4, 4096, 16, generator=random)
        return {"x": patches, "y": torch.randint(CLASSES, (4,), generator=random)}


class Positions(nn.Module):
    """What `LongTable` builds."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(16, 64)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, 64))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 4097, 64))
        self.mix = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        first = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat([first, self.patch(x)], dim=1) + self.pos_embed
        return self.head(self.norm(x + self.mix(x).tanh()).mean(1))


def tokens(random: torch.Generator) -> Batch:
    """Return text that is its own label."""
    ids = torch.randint(3, VOCABULARY, (4, TOKENS), generator=random)
    return {"input_ids": ids, "labels": ids}


def sentences(random: torch.Generator) -> Batch:
    """Return text with a class."""
    ids = torch.randint(3, VOCABULARY, (4, TOKENS), generator=random)
    return {"input_ids": ids, "labels": torch.randint(2, (4,), generator=random)}


def images(random: torch.Generator) -> Batch:
    """Return images with a class."""
    pixels = torch.randn(4, 3, 64, 64, generator=random)
    return {"pixel_values": pixels, "labels": torch.randint(2, (4,), generator=random)}


def captions(random: torch.Generator) -> Batch:
    """Return images with texts."""
    ids = torch.randint(3, VOCABULARY, (6, TOKENS), generator=random)
    return {"input_ids": ids, "pixel_values": torch.randn(6, 3, 32, 32, generator=random), "return_loss": True}


def sounds(random: torch.Generator) -> Batch:
    """Return waves with a class."""
    waves = torch.randn(4, 1600, generator=random)
    return {"input_values": waves, "labels": torch.randint(2, (4,), generator=random)}


@dataclass(frozen=True)
class Transformers(Architecture):
    """A model of transformers: the prefix of its class and its configuration, and the task its class is named for."""

    task: str = "ForCausalLM"
    inputs: Callable[[torch.Generator], Batch] = tokens
    library: ClassVar[str] = "transformers"

    def build(self) -> nn.Module:
        """Return the model with random weights, without dropout."""
        import transformers

        prefix = self.name.partition(" ")[0]
        config = getattr(transformers, f"{prefix}Config")(**self.options)
        for key, value in vars(config).items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        return getattr(transformers, f"{prefix}{self.task}")(config)

    def batch(self, random: torch.Generator) -> Batch:
        """Return one batch."""
        return self.inputs(random)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the model's own loss."""
        return model(**batch).loss


SMALL = {"img_size": 64}
NARROW = {"channels": (16, 32, 64, 128)}
SHALLOW = {"img_size": 64, "depth": 3}
SLIM = {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3}
WINDOWS = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}

CONVOLUTIONS = [
    *[Timm(name, NARROW) for name in ("resnet18", "skresnet18")],
    Timm("resnet26d", {"channels": (8, 16, 32, 64)}),
    Timm("densenet121", {"block_config": (2, 2, 2, 2), "growth_rate": 16}),
    *[Timm(name) for name in ("mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_lite0", "tinynet_e")],
    *[Timm(name) for name in ("regnetx_002", "regnety_002", "repvgg_a0", "ghostnet_050", "mnasnet_small")],
    *[Timm(name) for name in ("starnet_s1", "convnext_atto", "convnextv2_atto", "mambaout_femto")],
]
MIXED = [
    *[Timm(name) for name in ("efficientvit_b0", "fastvit_t8", "edgenext_xx_small", "mobilevit_xxs", "repvit_m0_9")],
    *[Timm(name) for name in ("shvit_s1", "poolformer_s12", "pvt_v2_b0", "caformer_s18", "tiny_vit_5m_224")],
    *[Timm(name, size=224) for name in ("levit_128s", "efficientvit_m0")],
    *[Timm(name, SMALL) for name in ("visformer_tiny", "coatnet_pico_rw_224")],
    *[Timm(name, SMALL) for name in ("maxvit_rmlp_pico_rw_256", "twins_svt_small")],
]
PATCHES = [
    *[
        Timm(name, SHALLOW)
        for name in ("vit_tiny_patch16_224", "xcit_nano_12_p16_224", "cait_xxs24_224", "convit_tiny")
    ],
    *[Timm(name, SLIM) for name in ("beit_base_patch16_224", "deit3_small_patch16_224")],
    Timm("tnt_s_patch16_224", {"img_size": 64, "depth": 2}),
    Timm("eva02_tiny_patch14_224", {"img_size": 56, "depth": 3}, size=56),
    Timm("swin_tiny_patch4_window7_224", {"img_size": 56, **WINDOWS}, size=56),
    Timm("swinv2_tiny_window8_256", {"img_size": 64, **WINDOWS}),
    *[Timm(name, SMALL) for name in ("resmlp_12_224", "gmlp_ti16_224")],
    LongTable("table of 4096 positions"),
]

WIDTH = {"vocab_size": VOCABULARY, "hidden_size": 64}
BODY = {**WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
DENSE = {**BODY, "intermediate_size": 128}
GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
GROUPED = {**DENSE, "num_key_value_heads": 2}
SCAN = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "state_size": 16}
DISENTANGLED = {**DENSE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}

ENCODERS = [
    *[Transformers(name, DENSE, "ForMaskedLM") for name in ("Bert", "Electra", "ConvBert")],
    Transformers("DebertaV2", DISENTANGLED, "ForMaskedLM"),
    Transformers("Bert (classes)", DENSE, "ForSequenceClassification", sentences),
    Transformers("Albert", {**DENSE, "embedding_size": 32}, "ForMaskedLM"),
    Transformers("FNet", {**WIDTH, "num_hidden_layers": 2, "intermediate_size": 128}, "ForMaskedLM"),
    Transformers(
        "DistilBert", {"vocab_size": 99, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}, "ForMaskedLM"
    ),
    Transformers(
        "MobileBert",
        {**BODY, "intermediate_size": 64, "embedding_size": 32, "intra_bottleneck_size": 32},
        "ForMaskedLM",
    ),
]
DECODERS = [
    Transformers("GPT2", GPT, "LMHeadModel"),
    Transformers("GPTBigCode", GPT),
    Transformers("GPTJ", {**GPT, "rotary_dim": 8}),
    *[Transformers(name, DENSE) for name in ("GPTNeoX", "Phi")],
    *[Transformers(name, GROUPED) for name in ("Llama", "Qwen2", "Starcoder2")],
    Transformers("Bloom", {**WIDTH, "n_layer": 2, "n_head": 4}),
    Transformers("OPT", {**BODY, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    Transformers("XLNet", {"vocab_size": 99, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}, "LMHeadModel"),
    Transformers(
        "GptOss",
        {
            **BODY,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 64,
            "num_local_experts": 4,
            "experts_implementation": "eager",
        },
    ),
    Transformers("Mamba (32)", {**SCAN, "hidden_size": 32}),
    Transformers("Mamba (128)", {**SCAN, "hidden_size": 128}),
    Transformers("Mamba2", {**SCAN, "hidden_size": 64, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8}),
]
OTHERS = [
    Transformers(
        "T5",
        {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "decoder_start_token_id": 0},
        "ForConditionalGeneration",
    ),
    Transformers(
        "Bart",
        {"vocab_size": 99, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64},
        "ForConditionalGeneration",
    ),
    Transformers(
        "Segformer", {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}, "ForImageClassification", images
    ),
    Transformers("Dinov2", {**TOWER, "image_size": 64, "patch_size": 16}, "ForImageClassification", images),
    Transformers(
        "CLIP",
        {
            "text_config": {**TOWER, "vocab_size": VOCABULARY, "eos_token_id": 98},
            "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
            "projection_dim": 32,
        },
        "Model",
        captions,
    ),
    Transformers(
        "Wav2Vec2",
        {
            **TOWER,
            "conv_dim": (32, 32, 32),
            "conv_kernel": (10, 3, 3),
            "conv_stride": (5, 2, 2),
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "apply_spec_augment": False,
            "layerdrop": 0.0,
        },
        "ForSequenceClassification",
        sounds,
    ),
]
ARCHITECTURES: list[Architecture] = [*CONVOLUTIONS, *MIXED, *PATCHES, *ENCODERS, *DECODERS, *OTHERS]
