"""Model files: what is saved comes back bit for bit; what is not a model file is refused."""

import json
import os
import stat
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpunn
from gpunn import io, nn
from gpunn.autograd.tensor import Tensor
from gpunn.io.safetensors import DTYPES


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_comes_back(tmp_path, dtype):
    values = np.array([[0, 1, 3], [5, 7, 2]]).astype(dtype)
    scalar, empty = values[1, 1:2].reshape(()), values[:0]
    io.save({"w": values, "s": scalar, "e": empty}, tmp_path / "m.safetensors")
    loaded = io.load_arrays(tmp_path / "m.safetensors")
    for name, expected in (("w", values), ("s", scalar), ("e", empty)):
        assert loaded[name].dtype == dtype and loaded[name].shape == expected.shape
        assert loaded[name].tobytes() == expected.tobytes()


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    name=st.text(min_size=1, max_size=9).filter(lambda text: text != "__metadata__"),
    bits=st.integers(0, 2**32),
)
def test_any_shape_and_name(tmp_path_factory, shape, name, bits):
    path = tmp_path_factory.mktemp("io") / "m.safetensors"
    array = np.random.default_rng(bits).random(shape).astype(np.float32)
    name = name.encode("utf-8", "ignore").decode() or "w"
    io.save({name: array}, path, {"note": name})
    assert np.array_equal(io.load_arrays(path)[name], array)
    assert io.load_metadata(path) == {"note": name}


def test_views_and_byte_orders_are_saved_as_they_read(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    saved = {"t": base.T, "s": base[::2, 1:], "b": base.astype(">f4"), "r": base[::-1]}
    io.save(saved, tmp_path / "m.safetensors")
    for name, array in io.load_arrays(tmp_path / "m.safetensors").items():
        assert np.array_equal(array, saved[name]), name


def test_tensors_and_models(tmp_path):
    class Model:
        def state_dict(self):
            return {"w": Tensor(np.float32([1, 2]))}

    io.save(Model(), tmp_path / "m.safetensors", metadata={"epoch": 3, "loss": 0.5})
    loaded = io.load(tmp_path / "m.safetensors")
    assert isinstance(loaded["w"], Tensor) and loaded["w"].numpy().tolist() == [1.0, 2.0]
    assert io.load_metadata(tmp_path / "m.safetensors") == {"epoch": "3", "loss": "0.5"}


def test_save_refuses(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(TypeError, match="got list"):
        io.save([1, 2], path)
    with pytest.raises(TypeError, match="'lr' is float"):
        io.save({"lr": 0.1}, path)
    with pytest.raises(TypeError, match="names must be strings"):
        io.save({1: np.zeros(2)}, path)
    with pytest.raises(ValueError, match="'__metadata__' is the format's own"):
        io.save({"__metadata__": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="'z' has dtype complex128"):
        io.save({"z": np.zeros(2, complex)}, path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        io.save({"w": np.zeros(2)}, tmp_path / "none" / "m.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        io.save({"w": np.zeros(2)}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    import safetensors.numpy

    path = tmp_path / "m.safetensors"
    io.save({"w": np.ones(3)}, path)

    def half(arrays, name, metadata=None):
        name.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        io.save({"w": np.zeros(3)}, path)
    assert io.load_arrays(path)["w"].tolist() == [1.0, 1.0, 1.0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_files_have_the_usual_permissions(tmp_path):
    io.save({"w": np.ones(3)}, tmp_path / "m.safetensors")
    (tmp_path / "plain").write_text("")
    modes = [stat.S_IMODE(os.stat(tmp_path / n).st_mode) for n in ("m.safetensors", "plain")]
    assert modes[0] == modes[1]


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "is not a safetensors file"),
        (b"\xff" * 64, "is not a safetensors file"),
        (b"PK\x03\x04" + b"0" * 60, "pickle or zip"),
        (b"\x80\x04\x95" + b"0" * 60, "pickle or zip"),
        (b"\x93NUMPY" + b"0" * 60, "NumPy .npy"),
        (b"\x89HDF\r\n\x1a\n" + b"0" * 60, "HDF5"),
        (header(b"{" + b" " * 127), "damaged or cut off"),
        (header(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"12"), "damaged"),
        (header(b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"1234"), "damaged"),
        (header(b'{"w":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', b"1234"), "damaged"),
    ],
)
def test_load_refuses(tmp_path, content, words):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(io.FileFormatError, match=words):
        io.load(path)


def test_load_refuses_dtypes_that_numpy_lacks(tmp_path):
    path = tmp_path / "m.safetensors"
    entry = {"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    path.write_bytes(header(json.dumps(entry).encode(), b"1234"))
    with pytest.raises(io.FileFormatError, match="'w' has dtype F8_E4M3"):
        io.load(path)


def test_load_refuses_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        io.load(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        io.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 200), place=st.integers(0, 90), value=st.integers(0, 255))
def test_damage_is_refused_or_harmless(tmp_path_factory, cut, place, value):
    """Cut short or with one byte changed: an error of ours or arrays, never anything else."""
    path = tmp_path_factory.mktemp("io") / "m.safetensors"
    io.save({"w": np.arange(6.0)}, path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content[: len(content) - cut] if cut < 20 else content)
    try:
        io.load_arrays(path)
    except io.FileFormatError as error:
        assert str(path) in str(error)


def test_pytorchs_names(tmp_path):
    """torch.save and torch.load of a state_dict, after changing the import."""
    model, path = nn.Linear(3, 2, device="cpu"), tmp_path / "model.pt"
    gpunn.save(model.state_dict(), path)
    state = gpunn.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    with pytest.raises(TypeError, match="'epoch' is int, not an array"):
        gpunn.save({"epoch": 3}, path)
