"""Names and classes of adapters: peft and its relatives."""

from __future__ import annotations

# A module that holds a layer under another name.
WRAPPERS = ("base_layer", "original_module")
# Parts of a path that belong to an adapter. The part after them is the adapter's name (`lora_B.default`).
NAMED_PARTS = (r"modules_to_save|lora_\w+",)
LORA_PARTS = (r"lora_\w+",)
ADAPTER_PARTS = (r"(lora|adalora|vera)_\w+",)
# The first factor of a layer's adapter: its rows are ranks, not the layer's outputs.
FIRST_FACTORS = (r"lora_(A|embedding)\w*",)
# Low-rank factors kept as bare arrays `(out, in)`: AdaLoRA, DeLoRA, HiRA, LoHa, LoKr.
ADAPTER_FACTORS = (r"((ada|de)?lora|hira)_[AB]", r"hada_w\d_[ab]", r"lokr_w\d(_[ab])?")
# Rows that replace rows of a lookup table.
TABLES = ("trainable_tokens_delta",)
TABLE_FACTORS = (r"lora_embedding_[AB]",)
# Small networks that produce prompts or prefixes: what they call a head gives inputs.
PROMPT_CLASSES = ("PromptEncoder|PrefixEncoder|PromptEmbedding",)
PROMPT_PARTS = ("prompt_encoder|prefix_encoder",)
