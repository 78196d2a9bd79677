"""The names under which other libraries keep the weights of well-known networks.

A layout is a list of pairs, gpunn's name and theirs. In both ``{}`` stands for a number and a final
``@`` for the name of a parameter (weight, bias, running_mean …).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpunn.autograd.tensor import Tensor, raw_array, wrap
from gpunn.device import array_module, device_of, to_numpy


@dataclass(frozen=True)
class Rule:
    """One pair of names; of several on their side the arrays lie one behind the other in ours."""

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Layout:
    """The names of a network elsewhere.

    Attributes
    ----------
    rules : pairs of names
    optional : a beginning of their names that may be missing
    ignored : patterns of what they keep besides weights
    tied : our names that are other names for the same array, which they do not store
    """

    rules: tuple[Rule, ...]
    optional: str = ""
    ignored: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()


def _rules(*pairs: tuple[str, Any]) -> tuple[Rule, ...]:
    return tuple(
        Rule(ours, (theirs,) if isinstance(theirs, str) else theirs) for ours, theirs in pairs
    )


def _vit_block(
    ours: str, theirs: str, *, norms: tuple[str, str], out: str, mlp: tuple[str, str]
) -> tuple[tuple[str, str], ...]:
    return (
        (f"{ours}.norm1.@", f"{theirs}.{norms[0]}.@"),
        (f"{ours}.norm2.@", f"{theirs}.{norms[1]}.@"),
        (f"{ours}.self_attn.out_proj.@", f"{theirs}.{out}.@"),
        (f"{ours}.linear1.@", f"{theirs}.{mlp[0]}.@"),
        (f"{ours}.linear2.@", f"{theirs}.{mlp[1]}.@"),
    )


_BLOCK = "encoder.layers.{}"


def _torchvision_vit() -> Layout:
    block = "encoder.layers.encoder_layer_{}"
    return Layout(_rules(
        ("class_token", "class_token"),
        ("positions", "encoder.pos_embedding"),
        ("patches.@", "conv_proj.@"),
        *_vit_block(_BLOCK, block, norms=("ln_1", "ln_2"), out="self_attention.out_proj",
                    mlp=("mlp.0", "mlp.3")),
        (f"{_BLOCK}.self_attn.in_proj_@", f"{block}.self_attention.in_proj_@"),
        ("encoder.norm.@", "encoder.ln.@"),
        ("head.@", "heads.head.@"),
    ))  # fmt: skip


def _timm_vit() -> Layout:
    return Layout(_rules(
        ("class_token", "cls_token"),
        ("positions", "pos_embed"),
        ("patches.@", "patch_embed.proj.@"),
        *_vit_block(_BLOCK, "blocks.{}", norms=("norm1", "norm2"), out="attn.proj",
                    mlp=("mlp.fc1", "mlp.fc2")),
        (f"{_BLOCK}.self_attn.in_proj_@", "blocks.{}.attn.qkv.@"),
        ("encoder.norm.@", "norm.@"),
        ("head.@", "head.@"),
    ))  # fmt: skip


def _huggingface_vit() -> Layout:
    block = "vit.encoder.layer.{}"
    attention = f"{block}.attention.attention"
    return Layout(_rules(
        ("class_token", "vit.embeddings.cls_token"),
        ("positions", "vit.embeddings.position_embeddings"),
        ("patches.@", "vit.embeddings.patch_embeddings.projection.@"),
        *_vit_block(_BLOCK, block, norms=("layernorm_before", "layernorm_after"),
                    out="attention.output.dense", mlp=("intermediate.dense", "output.dense")),
        (f"{_BLOCK}.self_attn.in_proj_@",
         tuple(f"{attention}.{part}.@" for part in ("query", "key", "value"))),
        ("encoder.norm.@", "vit.layernorm.@"),
        ("head.@", "classifier.@"),
    ))  # fmt: skip


def _huggingface_resnet() -> Layout:
    embedder = "resnet.embedder.embedder"
    pairs = [
        ("conv1.@", f"{embedder}.convolution.@"),
        ("bn1.@", f"{embedder}.normalization.@"),
        ("fc.@", "classifier.1.@"),
    ]
    for stage in range(4):
        ours, theirs = f"layer{stage + 1}.{{}}", f"resnet.encoder.stages.{stage}.layers.{{}}"
        pairs += [
            (f"{ours}.downsample.0.@", f"{theirs}.shortcut.convolution.@"),
            (f"{ours}.downsample.1.@", f"{theirs}.shortcut.normalization.@"),
        ]
        for part in range(2):
            pairs += [
                (f"{ours}.conv{part + 1}.@", f"{theirs}.layer.{part}.convolution.@"),
                (f"{ours}.bn{part + 1}.@", f"{theirs}.layer.{part}.normalization.@"),
            ]
    return Layout(_rules(*pairs))


def _huggingface_gpt2() -> Layout:
    turned = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # as TensorFlow has them
    block = "transformer.h.{}"
    same = [f"{block}.{norm}.@" for norm in ("ln_1", "ln_2")]
    same += [f"transformer.{part}.@" for part in ("wte", "wpe", "ln_f")]
    same += [f"{block}.{part}.bias" for part in turned]
    return Layout(
        (
            *_rules(*((name, name) for name in same)),
            *(Rule(f"{block}.{p}.weight", (f"{block}.{p}.weight",), True) for p in turned),
        ),
        optional="transformer.",
        ignored=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
        tied=(("lm_head.weight", "transformer.wte.weight"),),
    )


LAYOUTS: dict[str, Layout] = {
    "torchvision-vit": _torchvision_vit(),
    "timm-vit": _timm_vit(),
    "huggingface-vit": _huggingface_vit(),
    "huggingface-resnet": _huggingface_resnet(),
    "huggingface-gpt2": _huggingface_gpt2(),
}


def find_layout(name: str) -> Layout:
    """The layout of that name. ValueError, naming all, if there is none."""
    if name not in LAYOUTS:
        raise ValueError(f"there is no layout {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def from_layout(state: Mapping[str, Any], layout: str) -> dict[str, Tensor]:
    """A state of another library under gpunn's names.

    Parameters
    ----------
    state : names and arrays (of PyTorch, NumPy, gpunn …)
    layout : "torchvision-vit", "timm-vit", "huggingface-vit", "huggingface-resnet" or
        "huggingface-gpt2"; torchvision's ResNet has gpunn's names

    Names that the layout does not have stay as they are, so that `load_state_dict` tells of them.
    ValueError for an unknown layout, for two names of the same array, and where two names differ
    that are one array here.
    """
    found = find_layout(layout)
    given: dict[str, Any] = {}
    for name, value in state.items():
        _put(given, _full(name, found), value)
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    for name in given:
        if name in used:
            continue
        rule, numbers = _match(name, found.rules, theirs=True)
        if rule is None:
            if not _is_ignored(name, found) and name not in dict(found.tied):
                _put(result, name, wrap(raw_array(given[name])))
            continue
        parts = [_fill(pattern, numbers) for pattern in rule.theirs]
        if not all(part in given for part in parts):
            _put(result, name, wrap(raw_array(given[name])))
            continue
        used.update(parts)
        array = _joined(rule, [given[part] for part in parts])
        _put(result, _fill(rule.ours, numbers), wrap(array))
    for name, other in found.tied:
        own, shared = given.get(name), result.get(other)
        if own is not None and shared is not None and not _equal(own, shared):
            raise ValueError(
                f"{name!r} and {other!r} differ; a model with two arrays in the place of one that "
                "is shared cannot be taken over"
            )
        own = shared if own is None else own
        if own is not None:
            result[name] = wrap(raw_array(own))
    return result


def _put(into: dict[str, Any], name: str, value: Any) -> None:
    if name in into:
        raise ValueError(f"two names of the state stand for {name!r}; leave one of them out")
    into[name] = value


def _equal(one: Any, other: Any) -> bool:
    a, b = (to_numpy(raw_array(value)) for value in (one, other))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def to_layout(state: Mapping[str, Any], layout: str) -> dict[str, Tensor]:
    """A state of gpunn's model under the names of another library; as `from_layout`, backwards.

    ValueError for a name that the layout does not have, and for an array that cannot be divided.
    """
    found = find_layout(layout)
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in dict(found.tied):
            continue
        rule, numbers = _match(name, found.rules, theirs=False)
        if rule is None:
            raise ValueError(f"the layout {layout!r} has no name for {name!r}")
        array = raw_array(value)
        if rule.transposed:
            array = array.T
        size = array.shape[0] // len(rule.theirs) if array.ndim else 0
        if array.ndim and size * len(rule.theirs) != array.shape[0]:
            raise ValueError(
                f"{name!r} has shape {array.shape}; {len(rule.theirs)} arrays of equal size shall "
                "be made of it"
            )
        for number, pattern in enumerate(rule.theirs):
            part = array[number * size : (number + 1) * size] if len(rule.theirs) > 1 else array
            result[_fill(pattern, numbers)] = wrap(part)
    return result


def guess_layout(names: Iterable[str]) -> str | None:
    """The layout that has all these names; None if none has."""
    names = list(names)
    for kind, layout in LAYOUTS.items():
        tied = dict(layout.tied)
        full = [_full(name, layout) for name in names]
        known = (
            name in tied or _is_ignored(name, layout)
            or _match(name, layout.rules, theirs=True)[0] is not None
            for name in full
        )  # fmt: skip
        if names and all(known):
            return kind
    return None


def _full(name: str, layout: Layout) -> str:
    if not layout.optional or name.startswith(layout.optional) or name in dict(layout.tied):
        return name
    return layout.optional + name


def _is_ignored(name: str, layout: Layout) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in layout.ignored)


def _match(name: str, rules: Iterable[Rule], theirs: bool) -> tuple[Rule | None, tuple[str, ...]]:
    for rule in rules:
        for pattern in rule.theirs if theirs else (rule.ours,):
            text = re.escape(pattern).replace(r"\{\}", r"(\d+)").replace("@", r"(\w+)")
            if match := re.fullmatch(text, name):
                return rule, match.groups()
    return None, ()


def _fill(pattern: str, values: tuple[str, ...]) -> str:
    return pattern.replace("@", "{}").format(*values)


def _joined(rule: Rule, parts: list[Any]) -> Any:
    arrays = [raw_array(part) for part in parts]
    array = arrays[0]
    if len(arrays) > 1:
        array = array_module(device_of(array)).concatenate(arrays)
    return array.T if rule.transposed else array
