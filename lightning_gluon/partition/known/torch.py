"""Names and classes of torch itself, and the names that models written in plain torch share."""

from __future__ import annotations

from torch import nn

from lightning_gluon.partition.known.rows import Fused, MapLayout, RawMap

# ---- classes

LAYER_CLASSES = (
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Bilinear,
)
STACK_CLASSES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BACKBONE_CLASSES = (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer)
OUTPUT_ACTIVATIONS = (
    nn.Sigmoid,
    nn.Tanh,
    nn.Softmax,
    nn.LogSoftmax,
    nn.Softmax2d,
    nn.Softplus,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Dropout,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.PixelShuffle,
    nn.Upsample,
)
FUSED_PROJECTIONS = ("in_proj_weight",)
SEPARATE_PROJECTIONS = ("[qkv]_proj_weight",)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}

# How wide modules say that they are.
WIDTHS_IN = ("in_features", "in_channels", "in_feats", "_in_feats", "_in_src_feats")
WIDTHS_OUT = ("out_features", "out_channels", "out_feats", "_out_feats")

# torch.compile, DDP, FSDP and activation checkpointing hold a module under another name.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

# ---- input layers

INPUT_PARTS = (
    r"(.*_)?patch_?embed(ding|der)?s?\d*",
    r"patch_?(conv|proj|projection)",
    "stem|conv_stem|conv_in",
    "value_embedding|input_embedding",
    r"embed_(state|action|return|pixels|patches)",
    "patchify",
)
INPUT_CLASSES = ("(?i:Patch_?Embed|Patchify|PatchEncoder)",)
FIRST_LINEAR = (r"embed(ding|der)?", r"input_(proj|projection|layer|net|embed|fc)")
# Channels of an input as configurations and models call them.
CHANNELS = ("num_channels", "in_channels", "in_chans", "n_mels", "n_channels")

# ---- output layers

HEADS = (
    r"(.+_)?classifiers?(_dist\w*)?",
    r"(.+_)?heads?",
    "score",
    "to_logits",
    r"(.+_)?logits(_\w+)?",
    "output_layer|output_projection",
    r"(.+_)?predictor",
    r"predict_\w+",
    "fc|final_layer",
    r"cls_score|bbox_(pred|reg|ctrness)",
    r"aux\d+",
    "proj_out",
)
NOT_HEADS = ("pre_classifier|pre_head|pre_logits", "multi_?head", r".*attn_heads?", r".*attention_heads?")
LAST_OF_HEAD = (
    r"(proj|conv|fc|linear)_out",
    r"out(put)?_(proj|projection|conv|layer)",
    r"final_(conv|proj|projection)",
)
LAST_OF_NETWORK = ("fc|final_layer|proj_out",)  # an output only if nothing of its network comes after it
INPUT_SIDE = (r"input_\w+",)
NETWORKS = (r"(generator|discriminator|critic|actor|policy|q_net(work)?|value_net(work)?|policy_net)\d*",)
TRANSFORMS = ("head|lm_head|projection_head",)  # features, where one of the outputs follows
OUTPUTS = ("classifier|score|qa_outputs|lm_head",)
SHARED_SPACES = (r"(text|visual|vision|image|audio)_projection",)
NOT_HEAD_CLASSES = ("Pool(?!.*(Logits|Class))",)  # a pooling head gives features

PROJ_OUT = ("proj_out",)
CONTRAST_SCALES = (r"logit_scale\w*",)  # of models that compare the outputs of their towers
# An attention pool that ends a tower: OpenAI's CLIP.
POOL_OUTPUTS = ("c_proj",)
POOL_INPUTS = ("q_proj", "k_proj", "v_proj")
POOL_POSITIONS = ("positional_embedding", "pos_embed")
# Bare arrays that end a tower, on modules that hold these.
TOWER_PROJECTIONS = ("proj|text_projection|visual_projection",)
TOWER_PARTS = ("class_embedding", "positional_embedding")

# ---- the order of parts

ENCODERS = ("(.*_)?encoders?|enc",)
LATE_PARTS = ("(.*_)?decoders?|dec",)  # run after an encoder next to them
DECODERS = ("(.*_)?decoder", ".*vocoder", "(.*_)?generator")
FINAL_PARTS = (
    r"final(_(conv|linear|proj|projection))?|last_(conv|layer)",
    r"outc?|output|(conv|fc|proj|linear)_out|out(put)?_(conv|layer|proj|projection)",
)

# ---- arrays that are no map

POSITIONS = (
    r"(.*_)?(abs_)?pos(ition|itional)?_?(emb|embed|embeds|enc|encoding|embedding|embeddings)?(_.+|\d+)?",
    r".*_pos|time_embeddings",
)
POSITION_CLASSES = (
    "Position(al)?(Embed|Enc)|PosEmb|PosEnc",
    "Relative(Logits|PositionBias)",
    "RotaryEmb",
)
RELATIVE_POSITIONS = (
    r"(.*_)?rel(ative)?_(pos|position|attention|emb|embeddings|bias)\w*",
    r".*_rel(_[a-z])?|rpb|emb_rel_\w",
    r"attention_biases|position_bias|distance_embedding|pos_bias_\w|bias_values",
    r"rel_\w*(embed|embeddings?)",
)
RELATIVE_CLASSES = ("Relative|RelPos",)
TOKENS = (
    r".*tokens?(_\w+|\d+)?",
    r"cls(_emb\w*)?|class_(embedding|pos_emb)",
    r".*mask(ed)?_(spec_)?emb\w*",
    r"latents?(_\dd|_query)?|.*_latents?",
    r"(.+_)?quer(y|ies)(_embed|_tokens)?",
    r"(.+_)?(level|seg|segment)_embed\w*",
    r"(.+_)?prompts?(_\w+)?",
    r"\w+_init",
)
SCALES = (r"(.*_)?(logit|reg|video|text)?_?logit_(scale|bias)\w*", r"(.*_)?temp(erature)?", r"logit_scale\w*")
RATES = (r"A(_log|_logs)?|A_\w+", r"log_(A|dt|k|delta|state_decay)")
BIASES = (r"(.*_)?bias(es|_\w+)?",)
GAINS = (r"(D|layer_?scale|ls|gamma|alpha|beta|scale|res_scale|skip_scale)(_?\w)?",)
FILTERS = ("static_weight",)  # depthwise filters kept as a bare array

# ---- classes that own a bare `weight`

ROUTER_CLASSES = ("Router|Gate|Gating|TopK",)
ROUTER_LAYERS = ("gate|router|gating|wg|w_gate",)
EXPERT_PARTS = (r"(.+_)?experts?",)
EXPERT_CLASSES = ("Experts",)
ROUTED_COUNTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", "n_experts")
BARE_MAP_CLASSES = ("Linear|Dense|Projection",)

# ---- lookup tables

TABLES = (
    "codevectors|codebook|label_embeddings_concat",
    r"(.+_)?(entity|entities|relation|relations|node|user|item)_(emb|embs|embed|embeds|embedding|embeddings)",
)
ENTITIES = (r"(.*_)?(ent|entity|entities|node|nodes|concept|head|tail|subject|object)s?(_.*)?",)
# The names of tables where only the name is known.
TABLE_NAMES = (
    r"wte|wpe|shared|word_embeddings?|token_type_embeddings|position_embeddings",
    r"embed_(tokens|positions|in)|tok(en)?_?emb(ed|eddings?)?|emb(ed|edding|eddings)?",
    r"(.+_)?embeddings?|(.+_)?emb|(.+_)?embedder|(.+_)?lookup",
)
NORM_NAMES = (r"(.*_)?(norm|ln|bn|layer_?norm|batch_?norm|group_?norm|rms_?norm)\w*\d*", r"ln_\w+")

# ---- graph networks (torch_geometric, dgl): one convolution is one layer, whatever it holds

MESSAGE_CLASSES = (
    "MessagePassing|GraphConvolution",
    r"(GCN|SAGE|GIN|GINE|GAT|GATv2|Graph|RGCN|Rel|TAG|Cheb|ARMA|SG|PNA|Edge|Transformer|Hetero\w*|HGT|GEN)Conv\d*",
)

RAW_MAPS = (
    RawMap("HeteroLinear", "weight", MapLayout.BATCH_IN_OUT),
    RawMap("AMSoftmaxLoss", "weight", MapLayout.IN_FIRST, "head", "output layer"),
)

# ---- fused weights

FUSED = (
    Fused("proj", ("up", "gate"), holder="^(GEGLU|SwiGLU|ReGLU)$"),
    Fused("gate_up_proj|gate_and_up_proj|w12|fc1_gate|input_linear|v_gate", ("gate", "up")),
    Fused("qk", ("q", "k")),
    # Shifts, scales and gates of an adaptive norm, as many as it says or as the features go into the rows.
    Fused("(?i:.*(ada_?ln|modulation).*)", (), count="num_chunks or rows // columns"),
    Fused(".*", (), holder="AdaLayerNorm|AdaLN", count="num_chunks or rows // columns"),
)
