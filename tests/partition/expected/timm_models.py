"""Expected roles and matrices of timm architectures: name of the model -> parameter -> role, or (role, matrices)."""

from __future__ import annotations

BIAS, FIXED = "bias", "elementwise"

Views = list[tuple[int, int]]
Expected = dict[str, dict[str, str | tuple[str, Views]]]


def hidden(*views: tuple[int, int]) -> tuple[str, Views]:
    """A map between features."""
    return "hidden", list(views)


def router(*views: tuple[int, int]) -> tuple[str, Views]:
    """A map to experts."""
    return "router", list(views)


def first(*views: tuple[int, int]) -> tuple[str, Views]:
    """An input layer."""
    return "input", list(views)


def head(*views: tuple[int, int]) -> tuple[str, Views]:
    """An output layer."""
    return "head", list(views)


TIMM: Expected = {
    # convolutional networks
    "resnet18": {
        "conv1.weight": first((64, 147)),
        "bn1.weight": BIAS,
        "layer1.0.conv1.weight": hidden((64, 576)),
        "layer2.0.downsample.0.weight": hidden((128, 64)),
        "fc.weight": head((1000, 512)),
        "fc.bias": BIAS,
    },
    "resnext50_32x4d": {"conv1.weight": first((64, 147)), "layer1.0.conv2.weight": hidden(*[(4, 36)] * 32)},
    "regnety_002": {
        "stem.conv.weight": first((32, 27)),
        "s1.b1.conv2.conv.weight": hidden(*[(8, 72)] * 3),
        "s1.b1.se.fc1.weight": hidden((8, 24)),
        "head.fc.weight": head((1000, 368)),
    },
    "densenet121": {
        "features.conv0.weight": first((64, 147)),
        "features.denseblock1.denselayer1.conv2.weight": hidden((32, 1152)),
        "features.transition1.conv.weight": hidden((128, 256)),
        "classifier.weight": head((1000, 1024)),
    },
    "vgg11": {
        "features.0.weight": first((64, 27)),
        "pre_logits.fc1.weight": hidden((4096, 512 * 49)),
        "head.fc.weight": head((1000, 4096)),
    },
    "mobilenetv2_050": {
        "conv_stem.weight": first((16, 27)),
        "blocks.0.0.conv_dw.weight": FIXED,
        "blocks.0.0.conv_pw.weight": hidden((8, 16)),
        "conv_head.weight": hidden((1280, 160)),
        "classifier.weight": head((1000, 1280)),
    },
    "mobilenetv3_small_050": {"conv_stem.weight": first((16, 27)), "conv_head.weight": hidden((1024, 288))},
    "efficientnet_b0": {
        "conv_stem.weight": first((32, 27)),
        "blocks.1.0.conv_dw.weight": FIXED,
        "blocks.1.0.se.conv_reduce.weight": hidden((4, 96)),
        "conv_head.weight": hidden((1280, 320)),
        "classifier.weight": head((1000, 1280)),
    },
    "convnext_atto": {
        "stem.0.weight": first((40, 48)),
        "stages.0.blocks.0.conv_dw.weight": FIXED,
        "stages.0.blocks.0.gamma": BIAS,
        "stages.0.blocks.0.mlp.fc1.weight": hidden((160, 40)),
        "stages.1.downsample.1.weight": hidden((80, 160)),
        "head.fc.weight": head((1000, 320)),
    },
    "convmixer_768_32": {"stem.0.weight": first((768, 147)), "blocks.0.0.fn.0.weight": FIXED},
    "ghostnet_050": {"conv_stem.weight": first((8, 27)), "blocks.0.0.ghost1.cheap_operation.0.weight": FIXED},
    "selecsls42": {
        "stem.0.weight": first((32, 27)),
        "head.3.0.weight": hidden((1280, 1024)),
        "fc.weight": head((1000, 1280)),
    },
    "mixer_s32_224": {
        "stem.proj.weight": first((512, 3072)),
        "blocks.0.mlp_tokens.fc1.weight": hidden((256, 49)),
        "head.weight": head((1000, 512)),
    },
    # plain vision transformers
    "vit_small_patch16_224": {
        "cls_token": FIXED,
        "pos_embed": FIXED,
        "patch_embed.proj.weight": first((384, 768)),
        "patch_embed.proj.bias": BIAS,
        "blocks.11.attn.qkv.weight": hidden(*[(384, 384)] * 3),
        "blocks.11.attn.qkv.bias": BIAS,
        "blocks.0.attn.proj.weight": hidden((384, 384)),
        "blocks.0.mlp.fc1.weight": hidden((1536, 384)),
        "norm.weight": BIAS,
        "head.weight": head((1000, 384)),
    },
    "deit_tiny_distilled_patch16_224": {"dist_token": FIXED, "head_dist.weight": head((1000, 192))},
    "vit_base_patch16_siglip_224": {
        "attn_pool.latent": FIXED,
        "attn_pool.kv.weight": hidden(*[(768, 768)] * 2),
        "attn_pool.mlp.fc2.weight": hidden((768, 3072)),
    },
    "vit_small_patch14_dinov2": {"blocks.0.ls1.gamma": BIAS, "blocks.0.mlp.fc2.weight": hidden((384, 1536))},
    "vit_relpos_small_patch16_224": {"blocks.0.attn.rel_pos.mlp.fc1.weight": hidden((128, 2))},
    "samvit_base_patch16": {"blocks.0.attn.rel_pos_h": FIXED, "neck.0.weight": hidden((256, 768))},
    "beit_base_patch16_224": {
        "blocks.0.gamma_1": BIAS,
        "blocks.0.attn.q_bias": BIAS,
        "blocks.0.attn.relative_position_bias_table": FIXED,
        "blocks.0.attn.qkv.weight": hidden(*[(768, 768)] * 3),
    },
    "eva02_tiny_patch14_224": {"blocks.0.mlp.fc1.weight": hidden(*[(512, 192)] * 2)},
    "naflexvit_base_patch16_gap": {"embeds.proj.weight": first((768, 768)), "embeds.pos_embed": FIXED},
    # hierarchical ones and hybrids
    "swin_tiny_patch4_window7_224": {
        "patch_embed.proj.weight": first((96, 48)),
        "layers.0.blocks.0.attn.relative_position_bias_table": FIXED,
        "layers.0.blocks.0.attn.qkv.weight": hidden(*[(96, 96)] * 3),
        "layers.1.downsample.reduction.weight": hidden((192, 384)),
        "head.fc.weight": head((1000, 768)),
    },
    "swinv2_tiny_window8_256": {
        "layers.0.blocks.0.attn.logit_scale": FIXED,
        "layers.0.blocks.0.attn.cpb_mlp.0.weight": hidden((512, 2)),
    },
    "pvt_v2_b0": {
        "patch_embed.proj.weight": first((32, 147)),
        "stages.1.downsample.proj.weight": hidden((64, 288)),
        "stages.0.blocks.0.attn.kv.weight": hidden(*[(32, 32)] * 2),
        "stages.0.blocks.0.mlp.dwconv.weight": FIXED,
        "head.weight": head((1000, 256)),
    },
    "maxvit_tiny_tf_224": {
        "stem.conv1.weight": first((64, 27)),
        "stages.0.blocks.0.conv.conv2_kxk.weight": FIXED,
        "stages.0.blocks.0.attn_block.attn.qkv.weight": hidden(*[(64, 64)] * 3),
        "head.fc.weight": head((1000, 512)),
    },
    "coatnet_0_rw_224": {"stages.2.blocks.0.attn.qkv.weight": hidden(*[(192, 192)] * 3)},
    "levit_128s": {
        "stem.conv1.linear.weight": first((16, 27)),
        "stages.0.blocks.0.attn.qkv.linear.weight": hidden((64, 128), (64, 128), (128, 128)),
        "stages.0.blocks.0.attn.attention_biases": FIXED,
        "stages.1.downsample.attn_downsample.kv.linear.weight": hidden((128, 128), (512, 128)),
        "head_dist.linear.weight": head((1000, 384)),
    },
    "xcit_nano_12_p8_224": {
        "patch_embed.proj.0.0.weight": first((32, 27)),
        "patch_embed.proj.2.0.weight": hidden((64, 288)),
        "blocks.0.attn.temperature": FIXED,
        "blocks.0.attn.qkv.weight": hidden(*[(128, 128)] * 3),
        "blocks.0.local_mp.conv1.weight": FIXED,
        "blocks.0.gamma1": BIAS,
        "cls_attn_blocks.0.attn.q.weight": hidden((128, 128)),
    },
    "cait_xxs24_224": {"blocks.0.attn.proj_l.weight": hidden((4, 4)), "blocks.0.gamma_1": BIAS, "cls_token": FIXED},
    "mvitv2_tiny": {
        "patch_embed.proj.weight": first((96, 147)),
        "stages.0.blocks.0.attn.qkv.weight": hidden(*[(96, 96)] * 3),
        "stages.0.blocks.0.attn.pool_q.weight": FIXED,
        "stages.0.blocks.0.attn.rel_pos_h": FIXED,
    },
    "hiera_tiny_224": {
        "pos_embed": FIXED,
        "patch_embed.proj.weight": first((96, 147)),
        "blocks.1.attn.qkv.weight": hidden(*[(192, 96)] * 3),
    },
    "crossvit_tiny_240": {
        "patch_embed.0.proj.weight": first((96, 432)),
        "patch_embed.1.proj.weight": first((192, 768)),
        "cls_token_1": FIXED,
        "head.0.weight": head((1000, 96)),
        "head.1.weight": head((1000, 192)),
    },
    "efficientvit_b0": {"stages.2.blocks.1.context_module.main.qkv.conv.weight": hidden(*[(64, 64)] * 3)},
    "efficientvit_m0": {
        "stages.0.blocks.0.mixer.m.attn.qkvs.0.conv.weight": hidden((16, 16), (16, 16), (16, 16)),
    },
    "focalnet_tiny_srf": {"layers.0.blocks.0.modulation.f.weight": hidden((96, 96), (96, 96), (3, 96))},
    "gcvit_xxtiny": {
        "stages.0.blocks.0.attn.qkv.weight": hidden(*[(64, 64)] * 3),
        "stages.0.blocks.1.attn.qkv.weight": hidden(*[(64, 64)] * 2),
    },
    "mambaout_femto": {"stages.0.blocks.0.fc1.weight": hidden((128, 48), (80, 48), (48, 48))},
    "tiny_vit_5m_224": {"stages.1.blocks.0.attn.qkv.weight": hidden(*[(128, 128)] * 3)},
    "sequencer2d_s": {"stages.0.blocks.0.rnn_tokens.rnn_v.weight_ih_l0": hidden(*[(48, 192)] * 4)},
    "fastvit_t8": {"stem.0.conv_scale.conv.weight": first((48, 3)), "stages.0.blocks.0.layer_scale.gamma": BIAS},
    # convolutions mixed from experts, and maps fused under other names
    "efficientnet_cc_b0_4e": {
        "blocks.4.0.conv_pw.weight": hidden(*[(480, 80)] * 4),
        "blocks.4.0.conv_dw.weight": FIXED,
    },
    "tnt_s_patch16_224": {"blocks.0.attn_in.qk.weight": hidden((24, 24), (24, 24))},
    "lambda_resnet50ts": {"stages.2.1.self_attn.qkv.weight": hidden((64, 256), (16, 256), (64, 256))},
    "efficientvim_m1": {"stages.0.blocks.0.mixer.hz_proj.conv.weight": hidden((128, 128), (128, 128))},
    "vit_small_patch16_rope_mixed_224": {"rope.freqs": FIXED},
}
