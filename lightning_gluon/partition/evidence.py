"""Which layers read the raw input and which give the output: evidence from the module tree, not from shapes.

A layer is the *input layer* when
  1. timm's `pretrained_cfg` names it (`first_conv`), or
  2. it is the first layer of a module called patch embedding, stem or value embedding, and reads raw channels, or
     the first of the whole network and called `embedding`, `input_proj` or the like, or
  3. it is a convolution that comes first in the whole network, or first in a part of it and reads raw channels:
     at most four (grey, colour, alpha), or as many as the configuration says an input has (mel bins, bands).
A linear layer that merely comes first stays `hidden`: whether it reads raw data or the features of something that is
no parameter here cannot be seen without a forward pass, and its map is a spectral one in both cases.

A layer is an *output layer* when
  1. Hugging Face's `get_output_embeddings` or timm's `get_classifier` returns it, or
  2. it is the last layer of a module named as an output (`classifier`, `lm_head`, `head`, `score`, ...); of several
     children the last one that is named as an output itself (`classifier`, `proj_out`), or
  3. it is a convolution that ends a decoder or vocoder with raw channels, or
  4. nothing else in the network is one, and it is the last layer of the whole network, outside any stack of repeated
     blocks, with nothing but an output activation after it. A network of one single layer has no such layer, and a
     backbone without head neither.
"""

from __future__ import annotations

import re
from functools import cached_property

from torch import nn

from lightning_gluon.partition.network import Network, Site, class_names, is_lora, is_weight_layer, strip_wrappers

__all__ = ["Evidence"]

_Conv = nn.modules.conv._ConvNd
_ConvTranspose = nn.modules.conv._ConvTransposeNd
_RAW_CHANNELS = 4
_IMAGE = {1, 3}  # channels of a grey or colour image
_CHANNELS = (
    "num_channels",
    "in_channels",
    "in_chans",
    "num_mel_bins",
    "n_mels",
    "input_feat_per_channel",
    "n_channels",
)
_INPUT_PART = re.compile(
    r"((.*_)?patch_?embed(ding|der)?s?\d*|patch_?(conv|proj|projection)|stem|conv_stem|conv_in|value_embedding|input_embedding"
    r"|embed_(state|action|return|pixels|patches)|patchify)$"
)
_FIRST_LINEAR = re.compile(r"(embed(ding|der)?|input_(proj|projection|layer|net|embed|fc))$")
_INPUT_CLASS = re.compile(r"(Patch_?Embed|Patchify|PatchEncoder|NaFlexEmbed)", re.IGNORECASE)

_HEAD_PART = re.compile(
    r"((.+_)?classifiers?(_dist\w*)?|(.+_)?heads?|head_dist|score|qa_outputs|embed_out|to_logits|(.+_)?logits(_\w+)?"
    r"|output_layer|output_projection|(.+_)?predictor|predict_\w+|dense_prediction|(.+_)?(class|bbox)_embed"
    r"|seq_relationship|fc|final_layer|parameter_projection|action_out_proj|cls_score|bbox_(pred|reg|ctrness)|kps_score\w*"
    r"|(.+_)?postnet|answer_class|aux\d+|proj_out)$"
)
_NO_HEAD = re.compile(
    r"(conv_head|pre_classifier|pre_head|pre_logits|multi_?head|.*attn_heads?|.*attention_heads?|scale_heads"
    r"|.*(query_pos(ition)?|ref_point|ref_anchor|reference_points?)_head)$"
)
_LAST_OF_HEAD = re.compile(
    r"((proj|conv|fc|linear)_out|out(put)?_(proj|projection|conv|layer)|final_(conv|proj|projection))$"
)
_SIDE_OUTPUT = re.compile(r"(feat|prob)_out$")  # beside the postnet's last layer
_LAST_OF_NETWORK = {"fc", "final_layer", "proj_out"}  # an output only if nothing of its network comes after it
_INPUT_SIDE = re.compile(r"input_\w+$")
_DECODER = re.compile(r"((.*_)?decoder|.*vocoder|hifi_?gan|.*vocos|.*bigvgan\w*|(.*_)?generator)$", re.IGNORECASE)
_NO_HEAD_CLASS = re.compile(r"Pool(?!.*(Logits|Class))")  # a pooling head gives features
_TRANSFORMS = {"head", "lm_head", "projection_head"}
_OUTPUTS = {"classifier", "score", "qa_outputs", "lm_head"}
_SHARED_SPACE = re.compile(r"(text|visual|vision|image|audio)_projection$")
_NETWORK_PART = re.compile(
    r"(generator|discriminator|critic|actor|policy|q_net(work)?|value_net(work)?|policy_net)\d*$"
)
_STACKS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TORCH_BACKBONES = (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer)
_OUTPUT_ACTIVATIONS = (
    nn.Sigmoid, nn.Tanh, nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softplus, nn.Hardtanh, nn.Hardsigmoid,
    nn.Dropout, nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.Upsample,
)  # fmt: skip


def _entries(value: object) -> tuple[str, ...]:
    """Return a name or several names as a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, tuple | list) else ()


def _is_head(name: str) -> bool:
    """Tell whether a module of this name gives outputs."""
    return bool(_HEAD_PART.match(name)) and not _NO_HEAD.match(name)


class Evidence:
    """What the module tree says about its first and last layers.

    Args:
        network: The module tree.
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    # ---- input layers

    def input_reason(self, site: Site) -> str | None:
        """Return why the site's owner reads the raw input, or None."""
        owner = site.owner
        if is_lora(site.path) or isinstance(owner, _ConvTranspose):
            return None
        if name := self._named_by_timm(site, "first_conv"):
            return f"input layer of {name} (first_conv)"
        if not isinstance(owner, _Conv | nn.Linear):
            return None
        leads = self.network.leads(site)
        if leads is None or isinstance(self.network.modules[leads], nn.ModuleList):  # the list is no part by itself
            return self._lone_patch_embedding(site)
        raw = self._reads_raw(site)
        if self._called_input(site) and (raw or leads == "" or isinstance(owner, nn.Linear)):
            return f"input layer: first layer of {self._called_input(site)}"
        called = [part for part in site.parts if _FIRST_LINEAR.match(part)]
        if leads == "" and called:
            return f"input layer: first of the network, called {called[-1]}"
        if isinstance(owner, _Conv) and leads == "":
            return "input layer: the network's first convolution"
        if isinstance(owner, _Conv) and raw and self.network.count(leads) > 1 and not self._in_stack(site):
            return f"input layer: reads {owner.in_channels} raw channels first in {leads or 'the network'}"
        return None

    def _lone_patch_embedding(self, site: Site) -> str | None:
        """An input layer that comes not first: called so (CrossViT), or a convolution of a grey or colour image."""
        owner, called = site.owner, self._called_input(site)
        if called and (self._reads_raw(site) or isinstance(owner, nn.Linear)):
            return f"input layer: {called}"
        image = isinstance(owner, _Conv) and owner.in_channels in _IMAGE and owner.out_channels > _RAW_CHANNELS
        if image and not self._in_stack(site):
            return f"input layer: reads {owner.in_channels} raw channels"
        return None

    def _reads_raw(self, site: Site) -> bool:
        owner = site.owner
        if not isinstance(owner, _Conv):
            return False
        if owner.in_channels not in _IMAGE and any(_DECODER.match(part) for part in site.parts[:-1]):
            return False  # a code of few channels
        configs = (getattr(module, "config", None) for _, module in site.ancestors())
        declared = [getattr(config, name, None) for config in configs for name in _CHANNELS]
        return owner.in_channels <= _RAW_CHANNELS or owner.in_channels in declared

    def _called_input(self, site: Site) -> str | None:
        """Return the module around the site that is called an input layer and starts with it."""
        for path, module in reversed(site.chain):
            last = path.split(".")[-1]
            if _INPUT_PART.match(last) or _INPUT_CLASS.search(type(module).__name__):
                if module is site.owner or self.network.first(path) == site.path:
                    return f"{last} ({type(module).__name__})"
                return None
        return None

    # ---- output layers

    def head_reason(self, site: Site) -> str | None:
        """Return why the site's owner is an output layer, or None."""
        if is_lora(site.path):
            return None
        return self._known_heads.get(site.path) or self._last_layer(site)

    @cached_property
    def _known_heads(self) -> dict[str, str]:
        """Output layers that are declared or named as such: path of the layer and the reason."""
        found = {}
        for path in self.network.layers:
            reason = self._declared_or_named(self.network.site(f"{path}.weight"))
            if reason is not None:
                found[path] = reason
        return found

    def _declared_or_named(self, site: Site) -> str | None:
        if site.parts in self._declared_heads:
            return f"output layer: {self._declared_heads[site.parts]}"
        if name := self._named_by_timm(site, "classifier"):
            return f"output layer of {name} (classifier)"
        return None if self._declares(site, "classifier") else self._named_head(site)

    @cached_property
    def _declared_heads(self) -> dict[tuple[str, ...], str]:
        """Layers that a model returns from `get_output_embeddings` or `get_classifier`."""
        found: dict[tuple[str, ...], str] = {}
        paths = {id(module): path for path, module in reversed(list(self.network.modules.items()))}
        for module in self.network.modules.values():
            for method in ("get_output_embeddings", "get_classifier"):
                for layer in _call(module, method):
                    path = paths.get(id(layer))
                    own = path if is_weight_layer(layer) else None  # and it may hold another one (IDEFICS)
                    for last in (None if path is None else self.network.last(path), own):
                        if last is not None:
                            found.setdefault(strip_wrappers(last), f"{method}() of {type(module).__name__}")
        return found

    def _named_by_timm(self, site: Site, key: str) -> str | None:
        """Return the class of a timm model around the site whose configuration names it under `key`."""
        for path, module in site.ancestors():
            config = getattr(module, "pretrained_cfg", None)
            if isinstance(config, dict):
                inside = ".".join(site.parts[len(strip_wrappers(path)) :])
                if inside in _entries(config.get(key)):
                    return type(module).__name__
        return None

    @staticmethod
    def _declares(site: Site, key: str) -> bool:
        """Tell whether a timm model around the site names its first or last layers, so that no other can be one."""
        configs = (getattr(module, "pretrained_cfg", None) for _, module in site.ancestors())
        return any(bool(config.get(key)) for config in configs if isinstance(config, dict))

    def _named_head(self, site: Site) -> str | None:
        """An output by its name: the last layer of a module called classifier, head, score, ..."""
        for index, (path, module) in enumerate(site.chain):
            name = path.split(".")[-1]
            if _INPUT_SIDE.match(name):
                return None
            if not path or self._in_stack(site, index - 1) or _NO_HEAD_CLASS.search(type(module).__name__):
                continue
            parent, above = site.chain[index - 1]
            shared = _SHARED_SPACE.match(name) and self._contrasts(above)
            if not shared and not (_is_head(name) or _SIDE_OUTPUT.match(name)):
                continue
            if name.endswith("_head") and isinstance(getattr(above, f"{name[:-5]}_predictor", None), nn.Module):
                continue  # R-CNN: the box head gives features to the box predictor
            if name in _TRANSFORMS and self._precedes_output(parent, above, name):
                continue
            if name in _LAST_OF_NETWORK and not (self.network.is_last(site, parent) and self.network.count(parent) > 1):
                continue
            if name == "proj_out" and not any(isinstance(part, nn.ModuleList) for part in above.children()):
                continue  # of a block; a transformer's own follows its blocks
            if any(self.network.is_last(site, end) for end in self._ends_of(path)) and not self._starts(path, parent):
                return "output layer: projects into the shared space" if shared else f"output layer: {name}"
        return None

    def _ends_of(self, path: str) -> list[str]:
        """Return the parts of a head that give its outputs: each of several branches, else its last named part."""
        module = self.network.modules[path]
        inside = [name for name, _ in module.named_children() if f"{path}.{name}" in self.network.spans]
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            return [end for name in inside for end in self._ends_of(f"{path}.{name}")]
        named = [name for name in inside if _LAST_OF_HEAD.match(name) or _is_head(name)]
        branches = [name for name in inside[-1:] if isinstance(self.network.modules[f"{path}.{name}"], nn.ModuleDict)]
        return [end for name in named[-1:] or branches for end in self._ends_of(f"{path}.{name}")] or [path]

    def _starts(self, path: str, parent: str) -> bool:
        """Tell whether a module called head reads raw channels first in a larger one: a stem (`resnet_head`)."""
        first = self.network.modules[self.network.first(path) or ""]
        leads = self.network.first(parent) == self.network.first(path)
        raw = isinstance(first, _Conv) and first.in_channels <= _RAW_CHANNELS
        return leads and raw and self.network.count(parent) > self.network.count(path)

    def _precedes_output(self, path: str, module: nn.Module, name: str) -> bool:
        """Tell whether an output layer follows beside a module called head (ModernBERT: `head`, then `decoder`)."""
        names = [child for child, _ in module.named_children()]
        for other in names[names.index(name) + 1 :]:
            last = self.network.last(f"{path}.{other}".lstrip("."))
            if last is not None and (other in _OUTPUTS or strip_wrappers(last) in self._declared_heads):
                return True
        return False

    @staticmethod
    def _contrasts(module: nn.Module) -> bool:
        """Tell whether a model compares its towers' outputs (CLIP and its relatives)."""
        scaled = any(name.startswith("logit_scale") for name, _ in module.named_parameters(recurse=False))
        return scaled or "WithProjection" in type(module).__name__

    def _in_stack(self, site: Site, end: int | None = None) -> bool:
        """Tell whether a module on the chain, up to position `end`, is one of a stack of blocks of the same class."""
        end = len(site.chain) - 1 if end is None else end
        for (_, parent), (path, child) in zip(site.chain[:end], site.chain[1 : end + 1], strict=True):
            if isinstance(parent, _STACKS) and self.network.count(path) > 1:
                if isinstance(parent, nn.ModuleDict) and isinstance(child, _STACKS):
                    continue  # parts with names of their own, not repeated blocks
                alike = sum(type(other) is type(child) for other in parent.children())
                if alike > 1 or isinstance(parent, nn.ModuleList):
                    return True
        return False

    def _last_layer(self, site: Site) -> str | None:
        """The last layer of a plain network, or of a sub-network that is named as one of its own."""
        if reason := self._gives_raw(site):
            return reason
        if not isinstance(site.owner, nn.Linear | _Conv) or self._in_stack(site):
            return None
        if self._is_backbone(site) or not self._ends(site):
            return None
        for path, _ in site.chain[:-1]:
            whole = path == "" or _NETWORK_PART.match(path.split(".")[-1])
            if whole and self.network.is_last(site, path) and self.network.count(path) > 1:
                if self._has_head(site, path):
                    return None
                return f"output layer: the last layer of {path or 'the network'}"
        return None

    def _gives_raw(self, site: Site) -> str | None:
        """A convolution to raw channels at the end of a decoder (autoencoders, vocoders)."""
        owner = site.owner
        if not isinstance(owner, _Conv) or owner.out_channels > min(_RAW_CHANNELS, owner.in_channels - 1):
            return None
        if self._in_stack(site) or self._declares(site, "classifier"):
            return None
        for path, module in site.chain[:-1]:
            called = _DECODER.match(path.split(".")[-1]) or _DECODER.match(type(module).__name__)
            if called and self.network.is_last(site, path) and self.network.count(path) > 1:
                return f"output layer: gives {owner.out_channels} raw channels last in {path or 'the network'}"
        return None

    def _has_head(self, site: Site, path: str) -> bool:
        """Tell whether the network that the site belongs to has an output layer already."""
        models = [p for p, module in site.ancestors() if "PreTrainedModel" in class_names(module)]
        scope = path or (models[0] if models else site.path.split(".")[0])
        for head in self._known_heads:
            top = head.split(".")[0]
            inside = not scope or f"{head}.".startswith(f"{scope}.")
            if inside or (not path and not models and _HEAD_PART.match(top)):
                return True
        return False

    @staticmethod
    def _is_backbone(site: Site) -> bool:
        """Tell whether the site lies in a model that would have named its head, if it had one."""
        for _, module in site.ancestors():
            if isinstance(getattr(module, "pretrained_cfg", None), dict):
                return True
            if "PreTrainedModel" in class_names(module):
                return not re.search("For[A-Z]", type(module).__name__)
            if isinstance(module, _TORCH_BACKBONES):
                return True
        return False

    @staticmethod
    def _ends(site: Site) -> bool:
        """Tell whether nothing but an output activation follows the layer in the sequences around it."""
        for (_, parent), (_, child) in zip(site.chain[:-1], site.chain[1:], strict=True):
            if isinstance(parent, nn.Sequential):
                members = list(parent.children())
                after = members[[m is child for m in members].index(True) + 1 :]
                if not all(isinstance(module, _OUTPUT_ACTIVATIONS) for module in after):
                    return False
        return True


def _call(module: nn.Module, method: str) -> list[nn.Module]:
    """Ask a model for its output layers; models that cannot say are skipped."""
    if not callable(getattr(type(module), method, None)):
        return []
    try:
        answer = getattr(module, method)()
    except Exception:  # a model's own code: NotImplementedError, AttributeError, whatever it likes
        return []
    answers = answer if isinstance(answer, tuple | list) else (answer,)
    return [layer for layer in answers if isinstance(layer, nn.Module)]
