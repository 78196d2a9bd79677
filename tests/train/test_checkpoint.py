"""The file of a checkpoint, and `save_checkpoint` and `load_checkpoint` for loops of one's own."""

import json
import os
import random
import zipfile
from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import gpunn
from gpunn import io, nn, optim
from gpunn.data import DataLoader
from gpunn.errors import GpunnError
from gpunn.io import FileFormatError
from gpunn.train import CheckpointError, History, checkpoint_file, load_checkpoint, save_checkpoint

DTYPES = [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, np.uint64, np.int32]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays_of.arrays(
        dtype, arrays_of.array_shapes(min_dims=0, min_side=0, max_side=3)
    )
)
SCALARS = st.sampled_from([np.float32(1 / 3), np.int64(-7), np.bool_(True), np.uint8(3)])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | ARRAYS | SCALARS
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXTS | st.just("$") | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def assert_equal(one, other):
    assert type(one) is type(other), (one, other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, (np.ndarray, np.generic)):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    else:
        assert repr(one) == repr(other)


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_what_is_written_is_read(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("tree") / "a.safetensors"
    checkpoint_file.write(path, {"tree": tree})
    assert_equal(checkpoint_file.read(path), {"tree": tree})


def test_the_tree_is_json_that_any_program_reads(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    numbers = {"a": float("nan"), "b": [np.float64("-inf"), 1e300, 0.1], "c": 10**30}
    checkpoint_file.write(path, numbers)
    text = io.load_metadata(path)["gpunn_checkpoint"]
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert_equal(checkpoint_file.read(path), numbers | {"b": [-np.inf, 1e300, 0.1]})
    monkeypatch.setattr(checkpoint_file, "_LONGEST", 1000)
    with pytest.raises(CheckpointError, match="takes 2,0.. bytes, .*keep long lists .* as arrays"):
        checkpoint_file.write(path, {"losses": [0.25] * 340})
    checkpoint_file.write(path, {"losses": np.full(340, 0.25)})


def test_devices_views_and_shared_arrays(tmp_path):
    path = tmp_path / "a.safetensors"
    shared = gpunn.tensor(np.arange(4, dtype=np.float32), device="emulator")
    tree = {
        "shared": [shared, shared],
        "turned": np.arange(6).reshape(2, 3).T,
        "low": np.ones(3, ml_dtypes.bfloat16),
        "counter": Counter("aab"),
    }
    checkpoint_file.write(path, tree)
    assert set(io.load_arrays(path)) == {"shared/0", "turned", "low"}
    back = checkpoint_file.read(path)
    np.testing.assert_array_equal(back["shared"][1], [0, 1, 2, 3])
    np.testing.assert_array_equal(back["turned"], tree["turned"])
    assert back["low"].dtype == ml_dtypes.bfloat16 and back["counter"]["a"] == 2
    assert back["counter"]["z"] == 0 and back["low"].flags.writeable
    with pytest.raises(TypeError, match="a/1/b is object; a checkpoint holds numbers"):
        checkpoint_file.write(path, {"a": [1, {"b": object()}]})
    with pytest.raises(TypeError, match="names has dtype <U1"):
        checkpoint_file.write(path, {"names": np.array(["a"])})
    assert checkpoint_file.read(path)["counter"]["a"] == 2  # the file before is as it was


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "checkpoint-000001.safetensors"
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    optimizer = optim.Adam(model.parameters())
    save_checkpoint(path, model=model, optimizer=optimizer, extra={"epoch": 3})
    return path


def test_every_flipped_bit_is_noticed(whole, tmp_path):
    """The whole header and a sample of the rest, each at a random bit; and every kind of cut."""
    content, path = whole.read_bytes(), tmp_path / "a.safetensors"
    dice = random.Random(0)
    ends = [*range(24), *(dice.randrange(len(content)) for _ in range(400)), len(content) - 1]
    for at in ends:
        path.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
        )
        with pytest.raises(FileFormatError, match="a.safetensors"):
            checkpoint_file.read(path)
    for end in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(FileFormatError):
            checkpoint_file.read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(FileFormatError):
        checkpoint_file.read(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    model = nn.Linear(2, 2)

    def refused(match):
        with pytest.raises(FileFormatError, match=match):
            load_checkpoint(path, model=model)

    path.write_bytes(b"\x80\x05\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x02os.")
    refused("pickle or zip file")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", b"")
    refused("pickle or zip file")
    np.save(tmp_path / "a.npy", np.zeros(3))
    os.replace(tmp_path / "a.npy", path)
    refused("NumPy .npy file")
    path.write_text("{}")
    refused("not a safetensors file")
    io.save(model, path)
    refused("not a checkpoint of gpunn .a model")
    checkpoint_file.write(path, {"a": 1})
    about = io.load_metadata(path)
    io.save({"x": np.zeros(2)}, path, about | {"gpunn_checkpoint_format": "2"})
    refused("format '2', and this gpunn reads '1'")
    io.save({"x": np.zeros(2)}, path, about)
    refused("checksum")
    for text in (
        '{"a": {"$": "array", "name": "b"}}',
        '{"a": {"$": "code", "items": []}}',
        "[" * 9,
        "[" * 10**5 + "]" * 10**5,
        "3",
    ):
        about = {"gpunn_checkpoint": text, "gpunn_checkpoint_format": "1"}
        io.save({}, path, about | {"sha256": checkpoint_file._checksum(text, {})})
        refused("not a checkpoint that gpunn wrote")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none", model=model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "empty", model=model)


class Net(nn.Module):
    """Has what a `state_dict` does not show: a buffer that is not saved, frozen weights, dice."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.last, self.drop = nn.Linear(6, 2), nn.Dropout(0.4)
        self.last.bias.requires_grad = False
        self.register_buffer("seen", gpunn.zeros(1), persistent=False)
        self.dice = np.random.default_rng(1)

    def forward(self, x):
        self.seen += 1
        return self.last(self.drop(self.norm(self.first(x)))) * float(self.dice.random() + 0.5)


def parts():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((20, 5), dtype=np.float32)
    gpunn.manual_seed(4)
    model = Net()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": optim.lr_scheduler.MultiStepLR(optimizer, [3, 6], 0.5),
        "scaler": gpunn.amp.GradScaler(init_scale=128.0, growth_interval=3),
        "loader": DataLoader((x, (x.sum(1) > 0).astype(np.int64)), 4, shuffle=True, seed=1),
    }


def loop(model, optimizer, scheduler, scaler, loader, first=1, save=lambda step: None):
    """Steps `first` to 15; after each it calls `save`."""
    loss, step = nn.CrossEntropyLoss(), first
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            with gpunn.autocast("float16"):
                value = loss(model(x), y)
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            np.random.random()
            save(step)
            step += 1
            if step > 15:
                return


def everything(model, optimizer, scheduler, scaler, loader):
    state = optimizer.state_dict()
    arrays = [v for entries in state["state"].values() for v in entries.values()]
    return (
        [t.numpy().tobytes() for t in model.state_dict().values()],
        [np.asarray(array).tobytes() for array in arrays],
        [group["lr"] for group in state["param_groups"]],
        (scheduler.state_dict(), scaler.state_dict(), loader.state_dict()),
        (model.seen.item(), model.dice.random(), np.random.random(), random.random()),
        (gpunn.random.get_rng_state(), [p.requires_grad for p in model.parameters()]),
    )


def test_a_loop_of_ones_own(tmp_path):
    path = tmp_path / "mine.safetensors"
    np.random.seed(0)
    random.seed(0)
    first = parts()
    extra = {"best": 0.5, "names": ("a", "b")}
    loop(**first, save=lambda step: step == 7 and save_checkpoint(path, **first, extra=extra))
    expected = everything(**first)
    np.random.seed(9)
    second = parts()
    second["model"].last.bias.requires_grad = True
    assert load_checkpoint(path, **second) == extra
    loop(**second, first=8)
    assert everything(**second) == expected
    # The weights alone, and random numbers left alone.
    model, state = parts()["model"], gpunn.random.get_rng_state()
    load_checkpoint(path, model=model, random=False)
    assert gpunn.random.get_rng_state() == state


def test_what_does_not_fit_is_refused_before_anything_changes(tmp_path):
    path = tmp_path / "mine.safetensors"
    given = parts()
    save_checkpoint(path, model=given["model"], optimizer=given["optimizer"])
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2))
    before = [t.numpy().copy() for t in model.state_dict().values()]
    with pytest.raises(
        CheckpointError, match=r"here lacks first\.weight, first\.bias, norm.* more"
    ):
        load_checkpoint(path, model=model)
    parameters = list(given["model"].parameters())
    other = optim.SGD(parameters, lr=0.1)
    with pytest.raises(CheckpointError, match="the optimizer is AdamW there and SGD here"):
        load_checkpoint(path, model=given["model"], optimizer=other)
    halves = [{"params": part} for part in (parameters[:2], parameters[2:])]
    with pytest.raises(CheckpointError, match=r"groups of \[6\] parameters .* of \[2, 4\] here"):
        load_checkpoint(path, model=given["model"], optimizer=optim.AdamW(halves))
    with pytest.raises(CheckpointError, match="holds no scheduler and no loader"):
        load_checkpoint(path, scheduler=given["scheduler"], loader=given["loader"])
    for tensor, array in zip(model.state_dict().values(), before, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
    with pytest.raises(TypeError, match="the optimizer object has no state_dict"):
        save_checkpoint(path, optimizer=object())
    with pytest.raises(FileNotFoundError, match="folder .* does not exist"):
        save_checkpoint(tmp_path / "none" / "a.safetensors", model=model)
    assert issubclass(CheckpointError, GpunnError) and issubclass(CheckpointError, ValueError)


def test_a_history_is_kept_whole(tmp_path):
    history = History([{"epoch": 1, "loss": 1 / 3, "accuracy": float("nan")},
                       {"epoch": 2, "loss": float("inf"), "auc": np.float32(0.1)}])  # fmt: skip
    history.interrupted, history.stop_reason, history.best_epoch = True, "enough", 2
    text = history.to_json(tmp_path / "history.json")
    assert '"nan"' in text and "NaN" not in text and "Infinity" not in text
    back = History.from_json(tmp_path / "history.json")
    np.testing.assert_equal(back.records, history.records)
    assert vars(back).keys() == vars(history).keys()
    assert (back.interrupted, back.stop_reason, back.best_epoch) == (True, "enough", 2)
    assert isinstance(back[0]["epoch"], int)
    for wrong in ("[]", "{", '{"records": 3}', '{"records": [1]}'):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(ValueError, match="not a history"):
            History.from_json(tmp_path / "wrong.json")
