"""Names and classes of timm's models."""

from __future__ import annotations

from lightning_gluon.partition.known.rows import Fused

QKV = ("q", "k", "v")

INPUT_CLASSES = ("(?i:NaFlexEmbed)",)
HEAD_METHODS = ("get_classifier",)
HEADS = ("head_dist",)
NOT_HEADS = ("conv_head", "scale_heads")
RELATIVE_POSITIONS = ("pe_k",)
TOKENS = ("probe|pad_(up|down|left|right)",)

# Attributes in which a module writes the split of its layer down: parallel blocks, MambaOut, FocalNet.
DECLARED_LAYERS = ("in_proj|fc1|f",)
DECLARED_SIZES = ("in_split", "split_indices", "input_split")

FUSED = (
    Fused("qkvs?", QKV, ("qk_dim", "qk_dim", "pdim"), holder="SHSA"),
    Fused("qkvs?", QKV, ("dim_out_qk", "dim_out_qk", "dim_out_v")),
    Fused("qkv", ("k", "v"), holder="WindowAttentionGlobal", when="use_global"),
    Fused("qkv", QKV, groups="rows // (3 * dim)", holder="LiteMLA"),  # EfficientViT: (groups, 3, dim)
    # LambdaLayer: one key and one value for all heads.
    Fused("qkv", QKV, ("dim_qk * (heads or 1)", "dim_qk", "dim_v"), holder="LambdaLayer"),
    # MobileViT v2: one context score per position.
    Fused("qkv_proj", QKV, ("1", "rows // 2", "rows // 2"), holder="LinearSelfAttention", when="rows % 2"),
    Fused("pwise", QKV, groups="num_heads or 1", when="num_keys == 3"),  # LowFormer, CPUBone: (heads, 3, head size)
    Fused("qkv", QKV, groups="heads or 1", when="head_first"),  # (heads, 3, head size)
    # LeViT, TinyViT and EfficientFormer per head, EfficientViT and SHViT concatenated.
    Fused("qkvs?", QKV, ("key_dim", "key_dim", "val_dim")),
    Fused("qkvs?", QKV, ("key_dim", "key_dim", "val_dim"), groups="heads"),
    Fused("hz_proj", ("h", "z"), holder="HSMSSD"),
    Fused("BCdt_proj", ("B", "C", "dt"), holder="HSMSSD"),
    # A gate follows if the next layer reads half of what these give.
    Fused(
        "fc1|linear_1|linear1|pointwise_conv1|pointwise_lin1|linear_start|up_conv",
        ("value", "gate"),
        when="rows == 2 * next_reads",
    ),
    Fused("fc1|weights_in", ("gate", "up"), holder="GluMlp|SwiGLUPacked|SwiGLUFFN"),
)
