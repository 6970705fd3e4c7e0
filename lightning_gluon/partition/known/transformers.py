"""Names and classes of Hugging Face's models."""

from __future__ import annotations

from lightning_gluon.partition.known.rows import Fused, HeadRows, MapLayout, RawMap

QKV = ("q", "k", "v")

# What configurations call one thing.
ALIASES = {
    "heads": ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads"),
    "shared": ("num_key_value_heads", "num_kv_heads", "num_heads_kv", "n_kv_heads", "kv_n_heads"),
    "size": ("head_dim", "attention_head_size", "head_size", "dim_head"),
    "state": ("ssm_state_size", "d_state", "state_size"),
    "inner": ("intermediate_size", "d_inner"),
    "mixers": ("n_groups", "ngroups"),
    "rank": ("time_step_rank", "dt_rank"),
    "state_heads": ("num_heads", "nheads"),
}

# ---- layers

TRANSPOSED_CLASSES = ("Conv1D",)  # GPT-2's linear map, stored (in, out)
CHANNELS = ("num_mel_bins", "input_feat_per_channel")
HEAD_METHODS = ("get_output_embeddings",)
HEADS = (
    "qa_outputs|seq_relationship|answer_class|dense_prediction",
    "embed_out|parameter_projection|action_out_proj",
    r"kps_score\w*|(.+_)?(class|bbox)_embed",
    r"(.+_)?postnet",
)
SIDE_OUTPUTS = ("(feat|prob)_out",)  # next to the postnet's last layer
NOT_HEADS = (r".*(query_pos(ition)?|ref_point|ref_anchor|reference_points?)_head",)
DECODERS = ("hifi_?gan|.*vocos|.*bigvgan\\w*",)

# ---- arrays that are no map

RELATIVE_POSITIONS = ("index_kpool_compress_ape",)
TOKENS = (r"image_\w+|view_separator|dummy_node",)
RATES = ("time_(decay|first|faaaa)",)

# ---- maps kept as bare arrays

RAW_MAPS = (
    RawMap("XLNetRelativeAttention", "[qkvr]", MapLayout.IN_FIRST),
    RawMap("XLNetRelativeAttention", "o", MapLayout.OUT_FIRST),
    RawMap("FunnelRelMultiheadAttention", "r_kernel", MapLayout.IN_FIRST),
    RawMap("ZambaMambaMixer", "(x|dt)_proj_weight", MapLayout.BATCH),
    RawMap("RecurrentGemmaRglru", "(input|recurrent)_gate_weight", MapLayout.BATCH_IN_OUT),
    RawMap(".*HyperConnection|.*HyperHead", "(hc_)?fn", MapLayout.OUT_IN),
    RawMap(".*Indexer", "index_kpool_compress_gate", MapLayout.OUT_IN),
    RawMap(".*CodebooksHead", "weight", MapLayout.BATCH_IN_OUT, "head", "output layer"),
    RawMap("EsmFold2ConfidenceHead", "(plddt|resolved)_weight", MapLayout.BATCH_IN_OUT, "head", "output layer"),
    RawMap("EsmFold2Parcae", "input_matrix_continuous", MapLayout.OUT_IN),
    RawMap(".*MultiModalProjector", "mm_input_projection_weight", MapLayout.IN_FIRST),
    RawMap("XCLIPModel", "prompts_visual_projection", MapLayout.IN_FIRST),
    RawMap("OmDetTurboLanguageBackbone", "text_projection", MapLayout.IN_FIRST),
    RawMap("MultiQueryAttention.*", "query_proj", MapLayout.OUT_IN),
    RawMap("MultiQueryAttention.*", "(key|value)_proj", MapLayout.IN_FIRST),
    RawMap("MultiQueryAttention.*", "out_proj", MapLayout.OUT_FIRST),
)

# Experts stacked in one parameter.
EXPERT_PARAMETERS = ("gate_up_proj|down_proj|up_proj|gate_proj|w1|w2|w3|v1|weight",)
GATED_EXPERTS = ("gate_up_proj",)
GATED_EXPERT_LAYERS = ("input_linear",)
EXPERT_COUNTS = ("moe_num_experts", "num_experts")
EXPERTS_BY_COLUMN = ("w2",)  # DBRX applies its second map transposed

# ---- fused weights

_QKV_LAYERS = (
    "qkvs?|Wqkv|wqkv|qkv_proj|qkv_linear|query_key_value|to_qkv|in_proj_qkv|c_attn|att_proj|queries_keys_values"
)
_KV_LAYERS = "kv|to_kv|keys_values"
_NEW_FALCON = ("heads // (num_kv_heads or heads) * head_dim", "head_dim", "head_dim")
# Attention whose out dimension runs over the heads first: (heads, 3, head size).
_PER_HEAD = (
    "BloomAttention|GPTNeoXAttention|GPTNeoXJapaneseAttention|FalconAttention|PersimmonAttention"
    "|MiniMaxLightningAttention|DisentangledSelfAttention|GPTBigCodeAttention"
)
_VALUES_PER_KEY = "num_v_heads // num_k_heads"

INNER_LAYERS = ("conv|linear|c|fc",)  # a convolution or linear map with its norm: `qkv.conv`, `qkvs.0.conv`
ATTENTION_OUTPUTS = ("o_proj", "out_proj")

FUSED = (
    Fused(
        "projection_in",  # FocalNet
        ("q", "context", "gates"),
        ("(rows - focal_level - 1) // 2", "(rows - focal_level - 1) // 2", "focal_level + 1"),
    ),
    # Gated delta nets: Qwen3-Next's projections per key head, Qwen3.5's concatenated ones.
    Fused(
        "in_proj_qkvz",
        (*QKV, "z"),
        ("head_k_dim", "head_k_dim", f"{_VALUES_PER_KEY} * head_v_dim", f"{_VALUES_PER_KEY} * head_v_dim"),
        "num_k_heads",
    ),
    Fused("in_proj_ba", ("b", "a"), (_VALUES_PER_KEY, _VALUES_PER_KEY), "num_k_heads"),
    Fused("in_proj_qkv", QKV, ("num_k_heads * head_k_dim", "num_k_heads * head_k_dim", "num_v_heads * head_v_dim")),
    # Falcon: per head, multi-query concatenated, or in the newer variant (queries, k, v) per key head.
    Fused("query_key_value", QKV, _NEW_FALCON, "num_kv_heads or heads", "FalconAttention", "new_decoder_architecture"),
    Fused(
        "query_key_value",
        QKV,
        ("heads * head_dim", "head_dim", "head_dim"),
        holder="FalconAttention",
        when="multi_query and not new_decoder_architecture",
    ),
    # LeViT keeps its values wider than its keys.
    Fused("queries_keys_values", QKV, ("key_dim", "key_dim", "attention_ratio * key_dim"), "heads"),
    Fused("queries_keys_values", QKV, ("key_dim", "key_dim", "attention_ratio * key_dim")),
    Fused(_KV_LAYERS, ("k", "v"), ("key_dim", "val_dim")),
    Fused(_KV_LAYERS, ("k", "v"), ("key_dim", "val_dim"), "heads"),
    Fused(_KV_LAYERS, ("k", "v"), ("key_dim", "attention_ratio * key_dim")),
    Fused(_KV_LAYERS, ("k", "v"), ("key_dim", "attention_ratio * key_dim"), "heads"),
    # CodeGen is written for 4 tensor-parallel shards: (4, q v k, rows).
    Fused("qkv_proj", ("q", "v", "k"), groups="4", holder="CodeGenAttention"),
    Fused("c_attn", QKV, ("embed_dim", "kv_dim", "kv_dim"), holder="GPTBigCodeAttention", when="multi_query"),
    Fused("c_attn", ("k", "v"), when="rows == 2 * split_size"),  # GPT-2's cross-attention
    Fused(f"{_QKV_LAYERS}|in_proj", QKV, groups="heads or 1", holder=_PER_HEAD, when="not multi_query"),
    # Fewer key heads than query heads: Phi-3, DBRX, multi-query.
    Fused(_QKV_LAYERS, QKV, ("heads * size", "shared * size", "shared * size")),
    Fused(_QKV_LAYERS, QKV),
    # Queries with the gate of the attention's output, head by head: twice what the output reads.
    Fused("q_gate_proj", ("q", "gate"), ("qk_head_dim", "v_head_dim"), "heads"),
    Fused("q_proj", ("q", "gate"), ("head_dim", "head_dim"), "heads", when="rows == 2 * output_reads"),
    Fused(_KV_LAYERS, ("k", "v")),
    Fused("kv_proj", ("k", "v"), ("shared * head_dim", "shared * head_dim")),
    # DeepSeek's compressed keys and values.
    Fused("kv_a_proj_with_mqa", ("latent", "rotary key"), ("kv_lora_rank", "qk_rope_head_dim")),
    Fused("kv_b_proj", ("k", "v"), ("qk_nope_head_dim", "v_head_dim"), "heads"),
    Fused(".*", ("value", "gate"), holder="GatedLinearUnit|GluPointWiseConv", when="children < 3"),
    Fused("Wi", ("gate", "up"), holder="ModernBert"),
    # State spaces: (x, z) and (dt, B, C) of Mamba, (z, x, B, C, dt) of Mamba 2.
    Fused("x_proj", ("dt", "B", "C"), ("rank", "state", "state")),
    Fused("x_proj_weight", ("dt", "B", "C"), ("rows - 2 * state", "state", "state"), holder="ZambaMambaMixer"),
    Fused("in_proj", ("B", "C", "x"), holder="ShortConv"),
    Fused("in_proj", ("x", "z"), when="A_log and x_proj"),
    Fused("in_proj", ("x", "z"), groups="rows // 2", when="A_log and x_proj_weight"),  # Zamba stores them alternately
    Fused(
        "in_proj",
        ("z", "x", "B", "C", "dt"),
        ("inner", "inner", "(mixers or 1) * state", "(mixers or 1) * state", "state_heads"),
        when="A_log",
    ),
)

# ---- heads

_QUERIES = "(to_|linear_|[wW])?(q|query|queries)(_proj|_lin|_linear|_layer|_proj_weight)?"
_KEYS_AND_VALUES = "(to_|linear_|[wW])?(k|v|key|value|keys|values)(_proj|_lin|_linear|_layer|_proj_weight)?"

QUERY_LAYERS = (_QUERIES, "q_b_proj")  # keys and values without queries beside them are no attention: RWKV

HEAD_ROWS = (
    # DeepSeek's latent attention: up-projections have heads, down-projections have none.
    HeadRows("q(_b)?_proj", "qk_nope_head_dim + qk_rope_head_dim", "kv_lora_rank"),
    HeadRows("k", "qk_nope_head_dim", "kv_lora_rank"),
    HeadRows("v", "v_head_dim", "kv_lora_rank"),
    # Mamba 2: B and C are shared by groups of heads.
    HeadRows("[zx]", "head_dim", "A_log and dt_bias and not head_k_dim"),
    HeadRows("[BC]", "state", "A_log and dt_bias"),
    # Gated delta nets.
    HeadRows("q|k", "head_k_dim", "head_k_dim"),
    HeadRows("v|z", "head_v_dim", "head_v_dim"),
    HeadRows(_QUERIES, "size or rows // heads"),
    HeadRows(_KEYS_AND_VALUES, "size or rows // (shared or heads)"),
)
