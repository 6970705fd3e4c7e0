"""Expected roles and matrices of Hugging Face architectures: label -> (class, configuration, parameter -> expected)."""

from __future__ import annotations

from typing import Any

from tests.partition.expected.timm_models import BIAS, FIXED, Views, first, head, hidden, router

Case = tuple[str, dict[str, Any], dict[str, str | tuple[str, Views]]]


def table(rows: int, columns: int) -> tuple[str, Views]:
    """A lookup table, one row per entry."""
    return "embedding", [(rows, columns)]


TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = dict(TEXT, intermediate_size=24, num_key_value_heads=2)
BERT = dict(TEXT, intermediate_size=24, max_position_embeddings=12)
VISION = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=32)
GPT2 = dict(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=12)
SPEECH = dict(
    TEXT, intermediate_size=24, conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2,
    num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
)  # fmt: skip
DEEPSEEK = dict(
    TEXT, num_key_value_heads=4, intermediate_size=24, moe_intermediate_size=8, q_lora_rank=10, kv_lora_rank=6,
    qk_rope_head_dim=4, qk_nope_head_dim=3, v_head_dim=5, first_k_dense_replace=1, n_routed_experts=4, n_group=1,
    topk_group=1, num_experts_per_tok=2,
)  # fmt: skip

MODELS: dict[str, Case] = {
    # decoders
    "llama": (
        "LlamaForCausalLM",
        LLAMA,
        {
            "model.embed_tokens.weight": table(40, 16),
            "model.layers.1.self_attn.k_proj.weight": hidden((8, 16)),
            "model.layers.0.mlp.down_proj.weight": hidden((16, 24)),
            "model.layers.0.input_layernorm.weight": BIAS,
            "lm_head.weight": head((40, 16)),
        },
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        dict(LLAMA, head_dim=4),
        {"lm_head.weight": table(40, 16), "model.norm.weight": BIAS},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        dict(LLAMA, pad_token_id=0),
        {
            "model.layers.0.self_attn.qkv_proj.weight": hidden((16, 16), (8, 16), (8, 16)),
            "model.layers.0.mlp.gate_up_proj.weight": hidden((24, 16), (24, 16)),
            "lm_head.weight": head((40, 16)),
        },
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        GPT2,
        {
            "transformer.wte.weight": table(40, 16),
            "transformer.wpe.weight": table(12, 16),
            "lm_head.weight": table(40, 16),
            "transformer.h.0.attn.c_attn.weight": hidden(*[(16, 16)] * 3),
            "transformer.h.0.mlp.c_fc.weight": hidden((64, 16)),
            "transformer.h.0.mlp.c_proj.weight": hidden((16, 64)),
        },
    ),
    "gpt2 with cross-attention": (
        "GPT2LMHeadModel",
        dict(GPT2, add_cross_attention=True),
        {"transformer.h.0.crossattention.c_attn.weight": hidden((16, 16), (16, 16))},
    ),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        dict(TEXT, intermediate_size=24),
        {
            "gpt_neox.embed_in.weight": table(40, 16),
            "gpt_neox.layers.0.attention.query_key_value.weight": hidden(*[(16, 16)] * 3),
            "lm_head.weight": head((40, 16)),
        },
    ),
    "gpt-bigcode": (
        "GPTBigCodeForCausalLM",
        GPT2,
        {"transformer.h.0.attn.c_attn.weight": hidden((16, 16), (4, 16), (4, 16))},
    ),
    "bloom": (
        "BloomForCausalLM",
        dict(vocab_size=40, hidden_size=16, n_layer=1, n_head=4),
        {"transformer.h.0.self_attention.query_key_value.weight": hidden(*[(16, 16)] * 3)},
    ),
    "falcon-7b": (
        "FalconForCausalLM",
        dict(TEXT, multi_query=True, new_decoder_architecture=False),
        {"transformer.h.0.self_attention.query_key_value.weight": hidden((16, 16), (4, 16), (4, 16))},
    ),
    "falcon-40b": (
        "FalconForCausalLM",
        dict(TEXT, num_kv_heads=2, new_decoder_architecture=True),
        {"transformer.h.0.self_attention.query_key_value.weight": hidden((16, 16), (8, 16), (8, 16))},
    ),
    "opt": (
        "OPTForCausalLM",
        dict(TEXT, ffn_dim=24, word_embed_proj_dim=8, max_position_embeddings=12),
        {
            "model.decoder.embed_tokens.weight": table(40, 8),
            "model.decoder.embed_positions.weight": table(14, 16),
            "model.decoder.project_in.weight": hidden((16, 8)),
        },
    ),
    "qwen3 for classification": (
        "Qwen3ForSequenceClassification",
        dict(LLAMA, head_dim=4, pad_token_id=0),
        {"score.weight": head((2, 16)), "model.layers.0.self_attn.q_norm.weight": BIAS},
    ),
    # mixtures of experts
    "mixtral": (
        "MixtralForCausalLM",
        dict(LLAMA, num_local_experts=3),
        {
            "model.layers.0.mlp.gate.weight": router((3, 16)),
            "model.layers.0.mlp.experts.gate_up_proj": hidden(*[(24, 16)] * 6),
            "model.layers.0.mlp.experts.down_proj": hidden(*[(16, 24)] * 3),
        },
    ),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        dict(LLAMA, num_experts=3, moe_intermediate_size=8, shared_expert_intermediate_size=8, decoder_sparse_step=1),
        {
            "model.layers.0.mlp.experts.gate_up_proj": hidden(*[(8, 16)] * 6),
            "model.layers.0.mlp.shared_expert.up_proj.weight": hidden((8, 16)),
            "model.layers.0.mlp.shared_expert_gate.weight": BIAS,
        },
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        dict(LLAMA, num_experts=3, moe_intermediate_size=8, head_dim=4),
        {"model.layers.0.mlp.gate.weight": router((3, 16))},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        dict(LLAMA, head_dim=4, num_local_experts=3),
        {
            "model.layers.0.self_attn.sinks": BIAS,
            "model.layers.0.mlp.router.weight": router((3, 16)),
            "model.layers.0.mlp.experts.gate_up_proj": hidden(*[(24, 16)] * 6),
            "model.layers.0.mlp.experts.gate_up_proj_bias": BIAS,
            "model.layers.0.mlp.experts.down_proj": hidden(*[(16, 24)] * 3),
        },
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        DEEPSEEK,
        {
            "model.layers.0.self_attn.q_a_proj.weight": hidden((10, 16)),
            "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": hidden((6, 16), (4, 16)),
            "model.layers.0.self_attn.kv_b_proj.weight": hidden((12, 6), (20, 6)),
            "model.layers.1.mlp.gate.weight": router((4, 16)),
            "model.layers.1.mlp.experts.gate_up_proj": hidden(*[(8, 16)] * 8),
        },
    ),
    "jetmoe": (
        "JetMoeForCausalLM",
        dict(TEXT, intermediate_size=24, num_key_value_heads=4, kv_channels=4, num_local_experts=3),
        {
            "model.layers.0.mlp.router.layer.weight": router((3, 16)),
            "model.layers.0.self_attention.experts.router.layer.weight": router((3, 16)),
        },
    ),
    "llama4": (
        "Llama4ForCausalLM",
        dict(LLAMA, head_dim=4, intermediate_size_mlp=24, num_local_experts=3, num_experts_per_tok=1),
        {
            "model.layers.0.feed_forward.router.weight": router((3, 16)),
            "model.layers.0.feed_forward.shared_expert.gate_proj.weight": hidden((24, 16)),
        },
    ),
    "granite-moe": (
        "GraniteMoeForCausalLM",
        dict(LLAMA, num_local_experts=3),
        {"model.layers.0.block_sparse_moe.router.weight": router((3, 16))},
    ),
    # state spaces and recurrences
    "mamba2": (
        "Mamba2ForCausalLM",
        dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=2),
        {
            "backbone.layers.0.mixer.in_proj.weight": hidden((32, 16), (32, 16), (8, 16), (8, 16), (4, 16)),
            "backbone.layers.0.mixer.A_log": FIXED,
            "backbone.layers.0.mixer.D": BIAS,
            "backbone.layers.0.mixer.dt_bias": BIAS,
            "backbone.layers.0.mixer.conv1d.weight": FIXED,
            "backbone.layers.0.mixer.norm.weight": BIAS,
        },
    ),
    "falcon-mamba": (
        "FalconMambaForCausalLM",
        dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=2),
        {
            "backbone.layers.0.mixer.x_proj.weight": hidden((2, 32), (4, 32), (4, 32)),
            "backbone.layers.0.mixer.dt_proj.weight": hidden((32, 2)),
            "backbone.layers.0.mixer.A_log": FIXED,
        },
    ),
    "rwkv": (
        "RwkvForCausalLM",
        dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, attention_hidden_size=16, intermediate_size=24),
        {
            "rwkv.blocks.0.attention.time_decay": FIXED,
            "rwkv.blocks.0.attention.time_mix_key": BIAS,
            "rwkv.blocks.0.attention.receptance.weight": hidden((16, 16)),
            "head.weight": head((40, 16)),
        },
    ),
    "qwen3-next": (
        "Qwen3NextForCausalLM",
        dict(
            LLAMA, head_dim=4, num_experts=2, moe_intermediate_size=8, shared_expert_intermediate_size=8,
            linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=3, linear_value_head_dim=5,
            layer_types=["linear_attention", "full_attention"],
        ),
        {
            "model.layers.0.linear_attn.in_proj_qkvz.weight": hidden((6, 16), (6, 16), (20, 16), (20, 16)),
            "model.layers.0.linear_attn.in_proj_ba.weight": hidden((4, 16), (4, 16)),
            "model.layers.0.linear_attn.conv1d.weight": FIXED,
            "model.layers.0.linear_attn.A_log": FIXED,
            "model.layers.1.self_attn.v_proj.weight": hidden((8, 16)),
        },
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        dict(LLAMA, layer_types=["conv", "full_attention"]),
        {"model.layers.0.conv.in_proj.weight": hidden(*[(16, 16)] * 3), "model.layers.0.conv.conv.weight": FIXED},
    ),
    # encoders
    "bert": (
        "BertForMaskedLM",
        BERT,
        {
            "bert.embeddings.word_embeddings.weight": table(40, 16),
            "bert.embeddings.position_embeddings.weight": table(12, 16),
            "bert.encoder.layer.0.attention.self.query.weight": hidden((16, 16)),
            "cls.predictions.transform.dense.weight": hidden((16, 16)),
            "cls.predictions.decoder.weight": table(40, 16),
            "cls.predictions.bias": BIAS,
        },
    ),
    "roberta": (
        "RobertaForSequenceClassification",
        BERT,
        {"classifier.dense.weight": hidden((16, 16)), "classifier.out_proj.weight": head((2, 16))},
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        dict(vocab_size=40, dim=16, n_layers=1, n_heads=4, hidden_dim=24, max_position_embeddings=12),
        {"pre_classifier.weight": hidden((16, 16)), "classifier.weight": head((2, 16))},
    ),
    "deberta": (
        "DebertaForTokenClassification",
        dict(BERT, relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=8),
        {
            "deberta.encoder.rel_embeddings.weight": FIXED,
            "deberta.encoder.layer.0.attention.self.in_proj.weight": hidden(*[(16, 16)] * 3),
            "deberta.encoder.layer.0.attention.self.q_bias": BIAS,
            "classifier.weight": head((2, 16)),
        },
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        dict(TEXT, intermediate_size=24, pad_token_id=0, cls_token_id=1, sep_token_id=2),
        {
            "model.layers.0.attn.Wqkv.weight": hidden(*[(16, 16)] * 3),
            "model.layers.0.mlp.Wi.weight": hidden((24, 16), (24, 16)),
            "head.dense.weight": hidden((16, 16)),
            "decoder.weight": table(40, 16),
        },
    ),
    # encoder-decoders
    "t5": (
        "T5ForConditionalGeneration",
        dict(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0),
        {
            "shared.weight": table(40, 16),
            "decoder.embed_tokens.weight": table(40, 16),
            "lm_head.weight": table(40, 16),
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": FIXED,
            "encoder.block.0.layer.0.SelfAttention.q.weight": hidden((16, 16)),
        },
    ),
    "bart": (
        "BartForSequenceClassification",
        dict(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=12,
        ),
        {
            "model.encoder.embed_positions.weight": table(14, 16),
            "classification_head.dense.weight": hidden((16, 16)),
            "classification_head.out_proj.weight": head((3, 16)),
        },
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        dict(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, num_mel_bins=10,
            decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0,
        ),
        {
            "model.encoder.conv1.weight": first((16, 30)),
            "model.encoder.conv2.weight": hidden((16, 48)),
            "model.decoder.embed_positions.weight": table(448, 16),
            "proj_out.weight": table(40, 16),
        },
    ),
    # speech
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        SPEECH,
        {
            "wav2vec2.feature_extractor.conv_layers.0.conv.weight": first((8, 3)),
            "wav2vec2.feature_extractor.conv_layers.1.conv.weight": hidden((8, 24)),
            "wav2vec2.feature_projection.projection.weight": hidden((16, 8)),
            "wav2vec2.masked_spec_embed": FIXED,
            "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0": BIAS,
            "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1": hidden(*[(8, 32)] * 2),
            "lm_head.weight": head((40, 16)),
        },
    ),
    "hubert": (
        "HubertForSequenceClassification",
        SPEECH,
        {"projector.weight": hidden((256, 16)), "classifier.weight": head((2, 256))},
    ),
    "ast": (
        "ASTForAudioClassification",
        dict(VISION, num_mel_bins=16, max_length=32),
        {
            "audio_spectrogram_transformer.embeddings.patch_embeddings.projection.weight": first((16, 256)),
            "audio_spectrogram_transformer.embeddings.position_embeddings": FIXED,
            "classifier.dense.weight": head((2, 16)),
        },
    ),
    # vision
    "vit": (
        "ViTForImageClassification",
        VISION,
        {
            "vit.embeddings.cls_token": FIXED,
            "vit.embeddings.position_embeddings": FIXED,
            "vit.embeddings.patch_embeddings.projection.weight": first((16, 768)),
            "vit.layers.0.attention.q_proj.weight": hidden((16, 16)),
            "classifier.weight": head((2, 16)),
        },
    ),
    "vit without head": ("ViTModel", VISION, {"pooler.dense.weight": hidden((16, 16))}),
    "dinov2": (
        "Dinov2ForImageClassification",
        dict(VISION, patch_size=8, use_swiglu_ffn=True),
        {
            "dinov2.embeddings.mask_token": FIXED,
            "dinov2.encoder.layer.0.layer_scale1.lambda1": BIAS,
            "dinov2.encoder.layer.0.mlp.down_proj.weight": hidden((16, 48)),
            "classifier.weight": head((2, 32)),
        },
    ),
    "resnet": (
        "ResNetForImageClassification",
        dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        {
            "resnet.embedder.embedder.convolution.weight": first((8, 147)),
            "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight": hidden((16, 8)),
            "classifier.1.weight": head((2, 16)),
        },
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        dict(hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, decoder_hidden_size=8, num_attention_heads=[1, 2, 2, 2]),
        {
            "segformer.stages.0.patch_embeddings.proj.weight": first((8, 147)),
            "segformer.stages.1.patch_embeddings.proj.weight": hidden((16, 72)),
            "decode_head.linear_fuse.weight": hidden((8, 32)),
            "decode_head.classifier.weight": head((2, 8)),
        },
    ),
    "clip": (
        "CLIPModel",
        dict(text_config=dict(BERT), vision_config=dict(VISION), projection_dim=10),
        {
            "logit_scale": FIXED,
            "text_model.embeddings.token_embedding.weight": table(40, 16),
            "text_model.embeddings.position_embedding.weight": table(12, 16),
            "vision_model.embeddings.class_embedding": FIXED,
            "vision_model.embeddings.patch_embedding.weight": first((16, 3072)),
            "vision_model.embeddings.position_embedding.weight": table(2, 16),
            "text_projection.weight": head((10, 16)),
            "visual_projection.weight": head((10, 16)),
        },
    ),
    "siglip": (
        "SiglipModel",
        dict(text_config=dict(BERT), vision_config=dict(VISION)),
        {
            "logit_bias": FIXED,
            "vision_model.head.probe": FIXED,
            "vision_model.head.attention.in_proj_weight": hidden(*[(16, 16)] * 3),
            "vision_model.head.mlp.fc2.weight": hidden((16, 24)),
        },
    ),
    "yolos": (
        "YolosForObjectDetection",
        dict(VISION, image_size=[32, 32], num_detection_tokens=3),
        {
            "vit.embeddings.detection_tokens": FIXED,
            "class_labels_classifier.layers.0.weight": hidden((16, 16)),
            "bbox_predictor.layers.2.weight": head((4, 16)),
        },
    ),
    # maps kept as bare arrays
    "xlnet": (
        "XLNetLMHeadModel",
        dict(vocab_size=40, d_model=16, n_layer=1, n_head=4, d_inner=24),
        {
            "transformer.layer.0.rel_attn.q": hidden((16, 16)),
            "transformer.layer.0.rel_attn.r_w_bias": BIAS,
            "transformer.mask_emb": FIXED,
        },
    ),
    # heads that are registered out of order, beside each other or under a method's name
    "sam": (
        "SamModel",
        {},
        {
            "mask_decoder.iou_prediction_head.proj_out.weight": head((4, 256)),
            "mask_decoder.iou_prediction_head.layers.0.weight": hidden((256, 256)),
        },
    ),
    "owlvit": (
        "OwlViTForObjectDetection",
        {},
        {"box_head.dense2.weight": head((4, 768)), "box_head.dense1.weight": hidden((768, 768))},
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        {},
        {
            "decode_head.classifier.weight": head((2, 512)),
            "decode_head.fpn_bottleneck.conv.weight": hidden((512, 18432)),
        },
    ),
    "lxmert": (
        "LxmertForPreTraining",
        dict(TEXT, intermediate_size=24, l_layers=1, x_layers=1, r_layers=1),
        {"obj_predict_head.decoder_dict.attr.weight": head((400, 16))},
    ),
    "idefics": (
        "IdeficsForVisionText2Text",
        dict(TEXT, intermediate_size=24, additional_vocab_size=3),
        {"lm_head.weight": head((40, 16)), "lm_head.additional_fc.weight": head((3, 16))},
    ),
    "perceiver": (
        "PerceiverForSequenceClassification",
        dict(vocab_size=40, d_latents=16, d_model=16, num_latents=4, num_blocks=1, num_self_attends_per_block=1),
        {"perceiver.decoder.decoder.final_layer.weight": head((2, 16))},
    ),
    "decision transformer": (
        "DecisionTransformerModel",
        dict(hidden_size=16, n_layer=1, n_head=4),
        {"embed_return.weight": first((16, 1)), "predict_action.0.weight": head((4, 16))},
    ),
    "dac": (
        "DacModel",
        dict(encoder_hidden_size=4, decoder_hidden_size=32, n_codebooks=1),
        {"decoder.conv2.weight": head((1, 14)), "encoder.conv1.weight": first((4, 7))},
    ),
    "unispeech-sat": (
        "UniSpeechSatForPreTraining",
        dict(SPEECH, num_clusters=7, codevector_dim=6),
        {"label_embeddings_concat": table(7, 6)},
    ),
    # maps that are fused under other names
    "qwen3-next with gated attention": (
        "Qwen3NextForCausalLM",
        dict(
            LLAMA, head_dim=4, num_experts=2, moe_intermediate_size=8, shared_expert_intermediate_size=8,
            layer_types=["full_attention"] * 2,
        ),
        {"model.layers.0.self_attn.q_proj.weight": hidden((16, 16), (16, 16))},
    ),
    "wav2vec2-conformer": (
        "Wav2Vec2ConformerForXVector",
        dict(SPEECH, tdnn_dim=(8, 8), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=6),
        {
            "wav2vec2_conformer.encoder.layers.0.conv_module.pointwise_conv1.weight": hidden((16, 16), (16, 16)),
            "objective.weight": head((2, 6)),
        },
    ),
    "levit": (
        "LevitForImageClassificationWithTeacher",
        {},
        {
            "levit.encoder.stages.0.layers.8.keys_values.linear.weight": hidden((128, 128), (512, 128)),
            "classifier_distill.linear.weight": head((2, 384)),
        },
    ),
    "focalnet": (
        "FocalNetForImageClassification",
        {},
        {"focalnet.encoder.stages.0.layers.0.modulation.projection_in.weight": hidden((96, 96), (96, 96), (3, 96))},
    ),
}  # fmt: skip
