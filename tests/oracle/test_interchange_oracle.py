"""Weights and memory between PyTorch and gpunn: every layer, both ways, without copies."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import gpunn
from gpunn import io, models, nn

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

pytestmark = pytest.mark.oracle

# The layers with weights, as both libraries make them, and the shapes of what they are called with.
LAYERS = {
    "Linear(5, 3)": [(4, 5)],
    "Conv1d(4, 6, 3, groups=2)": [(2, 4, 8)],
    "Conv2d(4, 6, (3, 2), padding=1, bias=False)": [(2, 4, 6, 5)],
    "Conv3d(2, 3, 2)": [(1, 2, 4, 4, 3)],
    "ConvTranspose1d(4, 6, 3, stride=2, groups=2)": [(2, 4, 5)],
    "ConvTranspose2d(3, 4, 3, stride=2, output_padding=1)": [(2, 3, 4, 4)],
    "ConvTranspose3d(2, 3, 2)": [(1, 2, 3, 3, 2)],
    "BatchNorm1d(4)": [(5, 4)],
    "BatchNorm2d(4)": [(2, 4, 3, 3)],
    "BatchNorm3d(2)": [(2, 2, 2, 3, 2)],
    "InstanceNorm1d(3, affine=True, track_running_stats=True)": [(2, 3, 5)],
    "InstanceNorm2d(3, affine=True)": [(2, 3, 4, 4)],
    "InstanceNorm3d(2, affine=True)": [(1, 2, 3, 3, 2)],
    "GroupNorm(2, 4)": [(2, 4, 3)],
    "LayerNorm((3, 4))": [(2, 3, 4)],
    "RMSNorm(4)": [(2, 4)],
    "Embedding(7, 3, padding_idx=0)": [[[1, 0], [6, 2]]],
    "EmbeddingBag(7, 3, mode='sum')": [[[1, 0], [6, 2]]],
    "RNN(3, 4, num_layers=2, batch_first=True)": [(2, 5, 3)],
    "LSTM(3, 4, num_layers=2, bidirectional=True)": [(5, 2, 3)],
    "GRU(3, 4, bidirectional=True, bias=False)": [(5, 2, 3)],
    "RNNCell(3, 4)": [(2, 3)],
    "LSTMCell(3, 4)": [(2, 3)],
    "GRUCell(3, 4)": [(2, 3)],
    "MultiheadAttention(6, 2, batch_first=True)": [(2, 4, 6)] * 3,
    "MultiheadAttention(6, 2, kdim=4, vdim=3, add_bias_kv=False)": [
        (5, 2, 6),
        (4, 2, 4),
        (4, 2, 3),
    ],
    "TransformerEncoderLayer(6, 2, 8)": [(4, 2, 6)],
    "TransformerDecoderLayer(6, 2, 8, norm_first=True)": [(4, 2, 6), (3, 2, 6)],
    "Transformer(6, 2, 1, 2, 8)": [(4, 2, 6), (3, 2, 6)],
    "LinearCrossEntropyLoss(4, 5, bias=True)": [(3, 4), [0, 4, 2]],
}


def without_weights():
    """The names of modules that both libraries have, of which one made plainly has no state."""
    examples = {
        "AdaptiveAvgPool1d": "(1)", "ConstantPad1d": "(1, 0.)", "Module": "()", "ModuleDict": "()",
        "ModuleList": "()", "Sequential": "()", "Parameter": None, "CTCLoss": "()",
        "LocalResponseNorm": "(2)", "Unflatten": "(1, (1, 1))", "Upsample": "(scale_factor=2)",
        "UpsamplingBilinear2d": "(scale_factor=2)", "UpsamplingNearest2d": "(scale_factor=2)",
        "TransformerEncoder": None, "TransformerDecoder": None,  # inside of Transformer
    }  # fmt: skip
    for name in ("Circular", "Constant", "Reflection", "Replication", "Zero"):
        for dims in "123":
            examples[f"{name}Pad{dims}d"] = "(1, 0.)" if name == "Constant" else "(1)"
    for name in ("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool", "MaxUnpool"):
        examples |= {f"{name}{dims}d": "(1)" for dims in "123"}
    for name in nn.__all__:
        if isinstance(getattr(nn, name), type) and hasattr(torch.nn, name):
            if not any(text.startswith(name + "(") for text in LAYERS):
                yield name, examples.get(name, "()")


def test_the_list_has_every_layer_with_weights():
    for name, arguments in without_weights():
        if arguments is not None:
            made = eval(f"n.{name}{arguments}", {"n": nn})
            assert not made.state_dict(), name


def outputs(module, arguments, lib):
    """What a module gives, flattened to one list of NumPy arrays."""
    pending, found = [module.eval()(*map(lib.tensor, arguments))], []
    while pending:
        item = pending.pop()
        if isinstance(item, tuple):
            pending += item
        elif item is not None:
            found.append(item.detach().numpy())
    return found


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("text", LAYERS)
def test_files_of_every_layer_both_ways(text, tmp_path):
    """PyTorch's file gives our layer its outputs, and our file gives them to PyTorch's layer."""
    torch.manual_seed(1)
    rng = np.random.default_rng(0)
    arguments = [
        np.asarray(shape) if isinstance(shape, list) else rng.normal(size=shape).astype("f")
        for shape in LAYERS[text]
    ]
    theirs = eval(f"n.{text}", {"n": torch.nn})
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.1)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = eval(f"n.{text}", {"n": nn})
    io.load_into(ours, tmp_path / "theirs.safetensors")
    expected = outputs(theirs, arguments, torch)
    for got, want in zip(outputs(ours, arguments, gpunn), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    io.save(ours, tmp_path / "ours.safetensors")
    again = eval(f"n.{text}", {"n": torch.nn})
    again.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    for got, want in zip(outputs(again, arguments, torch), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_state_dicts_in_memory():
    """Parameters, buffers and bfloat16 of PyTorch load as they are, and ours in PyTorch."""
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).bfloat16()
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    ours.load_state_dict(dict(theirs.state_dict(), **dict(theirs.named_parameters())))
    for name, value in theirs.state_dict().items():
        assert ours.state_dict()[name].tolist() == value.float().tolist(), name
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    other.load_state_dict(
        {name: torch.from_dlpack(value) for name, value in ours.bfloat16().state_dict().items()}
    )
    assert torch.equal(other[0].weight, theirs[0].weight.float())


# ---- the same memory -----------------------------------------------------------------------------

DTYPES = [
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_and_gpunn_share_memory(dtype):
    base = gpunn.tensor([[1, 0, 2], [3, 4, 5]], device="cpu").to(dtype=getattr(gpunn, dtype))
    for view in (base, base.t(), base[:, ::2], base[1, 2]):
        given = torch.from_dlpack(view)
        assert given.dtype == getattr(torch, dtype) and given.stride() == view.stride()
        given.fill_(1)
        assert (view.float().numpy() == 1).all()
        back = gpunn.from_dlpack(given, copy=False)
        assert back.dtype == base.dtype and back.data_ptr() == view.data_ptr()
        assert back.stride() == view.stride()
        back.fill_(0)
        assert not given.any()


def test_what_cannot_be_shared():
    weight = nn.Linear(2, 3).weight
    for take in (torch.from_dlpack, np.from_dlpack):
        with pytest.raises(BufferError, match=r"requires a gradient.*Use .detach\(\)"):
            take(weight)
    assert torch.from_dlpack(weight.detach()).data_ptr() == weight.data_ptr()
    with pytest.raises(BufferError, match="require gradient"):
        gpunn.from_dlpack(torch.nn.Linear(2, 3).weight)
    with pytest.raises(BufferError, match="dtype torch.complex64 .*code 5, 64 bits"):
        gpunn.from_dlpack(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(BufferError, match="float8_e4m3fn"):
        gpunn.from_dlpack(torch.zeros(2, dtype=torch.float8_e4m3fn))
    assert gpunn.tensor(torch.ones(2).bfloat16()).dtype == gpunn.bfloat16
    assert gpunn.as_tensor(torch.ones(2, requires_grad=True)).tolist() == [1, 1]


def test_vit_under_the_names_of_torchvision(tmp_path):
    """The attention of torchvision's block, written down with its names, in our ViT."""
    ours = models.ViT(3, 8, 4, 1, 6, 2, 2, 12, norm_eps=1e-6)
    io.save(ours, tmp_path / "v.safetensors", layout="torchvision-vit")
    state = load_file(tmp_path / "v.safetensors")
    block = "encoder.layers.encoder_layer_1"
    attention = torch.nn.MultiheadAttention(6, 2)
    attention.load_state_dict({
        name.removeprefix(f"{block}.self_attention."): value
        for name, value in state.items() if f"{block}.self_attention" in name
    })  # fmt: skip
    assert state["conv_proj.weight"].shape == (6, 1, 4, 4) and len(state) == 4 + 4 + 2 * 12
    other = models.ViT(3, 8, 4, 1, 6, 2, 2, 12, norm_eps=1e-6)
    io.load_into(other, state)
    for name, value in ours.state_dict().items():
        assert value.tolist() == other.state_dict()[name].tolist(), name


def test_the_blocks_of_the_page_that_need_torch(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "interchange.md").read_text("utf-8")
    blocks = re.findall(r"^```py\n(.*?)^```", page, re.S | re.M)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "interchange.md", "exec"), {})
