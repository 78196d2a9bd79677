"""Names of other libraries, and models in several files."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gpunn
from gpunn import io, models, nn
from gpunn.models import GPT, GPTConfig

VIT = (5, 8, 4, 1, 6, 2, 2, 12)


def same(one, other):
    state = other.state_dict()
    return all(np.array_equal(v.numpy(), state[k].numpy()) for k, v in one.state_dict().items())


@pytest.mark.parametrize(
    ("layout", "make", "name"),
    [
        ("torchvision-vit", lambda: models.ViT(*VIT), "encoder.layers.encoder_layer_1.mlp.3.bias"),
        ("timm-vit", lambda: models.ViT(*VIT), "blocks.1.attn.qkv.weight"),
        ("huggingface-vit", lambda: models.ViT(*VIT),
         "vit.encoder.layer.0.attention.attention.value.bias"),
        ("huggingface-resnet", lambda: models.ResNet18(3, small_images=True),
         "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var"),
        ("huggingface-gpt2", lambda: GPT(GPTConfig(11, 4, 2, 2, 6)),
         "transformer.h.1.mlp.c_fc.weight"),
    ],
)  # fmt: skip
def test_a_model_through_the_names_of_others(layout, make, name, tmp_path):
    gpunn.manual_seed(0)
    model, other = make(), make()
    io.save(model, tmp_path / "m.safetensors", layout=layout)
    state = io.load(tmp_path / "m.safetensors")
    assert name in state and io.guess_layout(state) == layout
    assert io.load_metadata(tmp_path / "m.safetensors") == {"format": "pt"}
    assert not same(model, other)
    assert io.load_into(other, tmp_path / "m.safetensors") == ([], [])
    assert same(model, other)
    third = make()
    assert io.load_into(third, model.state_dict()) == ([], []) and same(model, third)


def test_what_the_layouts_do_to_arrays():
    model = models.ViT(*VIT)
    state = io.to_layout(model.state_dict(), "huggingface-vit")
    packed = model.encoder.layers[1].self_attn.in_proj_weight.detach().numpy()
    for part, rows in zip(("query", "key", "value"), np.split(packed, 3), strict=True):
        name = f"vit.encoder.layer.1.attention.attention.{part}.weight"
        np.testing.assert_array_equal(state[name].numpy(), rows)
    gpt = GPT(GPTConfig(11, 4, 1, 2, 6))
    state = io.to_layout(gpt.state_dict(), "huggingface-gpt2")
    assert state["transformer.h.0.attn.c_attn.weight"].shape == (6, 18)
    assert "lm_head.weight" not in state  # it is wte.weight
    short = {name.removeprefix("transformer."): value for name, value in state.items()}
    short["h.0.attn.bias"] = np.zeros((1, 1, 4, 4))  # a mask, as in the published file
    other = GPT(GPTConfig(11, 4, 1, 2, 6))
    io.load_into(other, short)
    assert same(gpt, other)


def test_names_that_do_not_fit():
    model = models.ViT(*VIT)
    state = io.to_layout(model.state_dict(), "huggingface-vit")
    del state["vit.encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(RuntimeError) as caught:
        io.load_into(model, state)
    assert "missing: encoder.layers.0.self_attn.in_proj_bias" in str(caught.value)
    assert "attention.attention.query.bias" in str(caught.value)
    with pytest.raises(ValueError, match="no layout 'hf'; there are torchvision-vit"):
        io.load_into(model, state, "hf")
    with pytest.raises(ValueError, match="no name for 'fc.weight'"):
        io.to_layout({"fc.weight": np.zeros(2)}, "timm-vit")
    with pytest.raises(ValueError, match=r"\(7, 2\); 3 arrays of equal size"):
        packed = {"encoder.layers.0.self_attn.in_proj_weight": np.zeros((7, 2))}
        io.to_layout(packed, "huggingface-vit")
    small = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    parallel = {f"module.{name}": value for name, value in small.state_dict().items()}
    with pytest.raises(RuntimeError, match="names of the state begin with 'module.'"):
        small.load_state_dict(parallel)
    inner = {name.removeprefix("0."): v for name, v in small.state_dict().items() if name[0] == "0"}
    with pytest.raises(RuntimeError, match="names of the model begin with '0.'"):
        nn.Sequential(nn.Linear(2, 3)).load_state_dict(inner)
    renamed = {name.replace("weight", "weights"): v for name, v in small.state_dict().items()}
    with pytest.raises(RuntimeError, match="0.weights is perhaps 0.weight; 1.weights is perhaps 1"):
        small.load_state_dict(renamed)
    turned = {**small.state_dict(), "0.weight": np.zeros((2, 3))}
    with pytest.raises(RuntimeError, match=r"has \(2, 3\), not \(3, 2\) \(it lies transposed\)"):
        small.load_state_dict(turned)


def test_names_that_collide():
    ones, zeros = np.ones((11, 6)), np.zeros((11, 6))
    for state in (
        {"transformer.wte.weight": ones, "wte.weight": zeros},
        {"wte.weight": ones, "lm_head.weight": zeros},
    ):
        with pytest.raises(ValueError, match="transformer.wte.weight"):
            io.from_layout(state, "huggingface-gpt2")
    tied = {"wte.weight": ones, "lm_head.weight": ones}
    assert len(io.from_layout(tied, "huggingface-gpt2")) == 2
    with pytest.raises(ValueError, match="two names of the state stand for 'encoder.norm.weight'"):
        io.from_layout(
            {"encoder.norm.weight": ones, "vit.layernorm.weight": ones}, "huggingface-vit"
        )


def test_a_gpt_of_another_size_is_not_taken_for_hugging_faces():
    state = GPT(GPTConfig(11, 4, 1, 2, 8)).state_dict()
    with pytest.raises(RuntimeError, match=r"c_attn.weight: the state has \(24, 8\), not"):
        io.load_into(GPT(GPTConfig(11, 4, 1, 2, 6)), state)
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    io.load_into(one, other)
    assert same(one, other)


# ---- several files -------------------------------------------------------------------------------


def arrays(scale=1.0):
    return {name: np.full(64, scale * i, np.float32) for i, name in enumerate("abcde")}


def test_shards_come_back(tmp_path):
    path = tmp_path / "model.safetensors"
    io.save(arrays(), path, {"epoch": 3}, shard_size=600)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * 256, "epoch": "3"}
    assert index["weight_map"]["c"] == "model-00002-of-00003.safetensors"
    assert not path.exists()
    for place in (path, tmp_path, tmp_path / "model.safetensors.index.json"):
        loaded = io.load_arrays(place)
        assert list(loaded) == list("abcde") and loaded["e"].tolist() == [4.0] * 64
    assert io.load_metadata(path)["epoch"] == "3"


def test_one_model_takes_the_place_of_another(tmp_path):
    """Several files, other several files, one file, several again: never a mixture."""
    path = tmp_path / "model.safetensors"
    for number, size in enumerate([600, 300, None, "0.3KB", "1GiB"], start=1):
        io.save(arrays(number), path, shard_size=size)
        assert io.load_arrays(path)["b"][0] == number == io.load_arrays(tmp_path)["b"][0]
        files = {file.name for file in tmp_path.iterdir()}
        one = size in (None, "1GiB")
        expected = 1 if one else 1 + {600: 3, 300: 5, "0.3KB": 5}[size]
        assert len(files) == expected and (path.name in files) == one


def test_a_crash_while_shards_are_written_leaves_the_old_model(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    io.save(arrays(1), path, shard_size=600)
    import gpunn.io.sharded as sharded

    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sharded, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        io.save(arrays(2), path, shard_size=600)
    assert io.load_arrays(path)["b"][0] == 1
    assert sorted(tmp_path.iterdir()) == before


def test_only_shards_are_replaced(tmp_path):
    """An index may name any file beside it; of a broken model what is left goes."""
    path, index = tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"
    (tmp_path / "thesis.pdf").write_text("")
    index.write_text('{"weight_map": {"a": "thesis.pdf"}}')
    io.save(arrays(), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "thesis.pdf"]
    io.save(arrays(), path, shard_size=600)
    next(tmp_path.glob("*-00002-of-*")).unlink()
    io.save(arrays(), path, shard_size=300)
    assert len(list(tmp_path.iterdir())) == 5 + 1 + 1 and len(io.load_arrays(path)) == 5


def test_what_a_killed_process_left_is_no_second_model(tmp_path):
    io.save(arrays(), tmp_path / "net.safetensors")
    (tmp_path / ".net-0123456789ab.safetensors").write_bytes(b"half")
    assert list(io.load_arrays(tmp_path)) == list("abcde")


def test_wrong_shards(tmp_path):
    path = tmp_path / "model.safetensors"
    index = tmp_path / "model.safetensors.index.json"
    io.save(arrays(), path, shard_size=600)
    with pytest.raises(ValueError, match="shard_size is '5 pages'"):
        io.save(arrays(), path, shard_size="5 pages")
    (tmp_path / "model-00002-of-00003.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="names 3 files, of which model-00002-of-00003"):
        io.load(path)
    for text, error in [
        ("{", "is damaged"),
        ('{"weight_map": [1]}', "is damaged"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "only files beside the index are read"),
        ('{"weight_map": {"z": "model-00001-of-00003.safetensors"}}', "lacks z"),
        ('{"weight_map": {}}', "names no file"),
        ('{"weight_map": {"a": "b", "a": "c"}}', "'a' is there 2 times"),
        ('{"weight_map": {"a": "' + "x" * 999 + '"}}', "longer name"),
        ("[" * 100_000, "RecursionError"),
    ]:
        index.write_text(text)
        with pytest.raises(io.FileFormatError, match=error):
            io.load(tmp_path)
