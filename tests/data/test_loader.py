"""DataLoader: every sample once, in an order of (seed, epoch), and it can go on where it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn.autograd.random import default_generator
from gpunn.autograd.tensor import Tensor
from gpunn.data import DataLoader, Dataset, ImageAugmentation, Subset, TensorDataset


def numbers(loader):
    return [batch[0].numpy().tolist() for batch in loader]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**50),
)
def test_each_sample_comes_once(length, batch_size, shuffle, drop_last, seed):
    if drop_last and length < batch_size:
        return
    data = TensorDataset(np.arange(length))
    loader = DataLoader(data, batch_size, shuffle, seed=seed, drop_last=drop_last)
    batches = numbers(loader)
    assert len(batches) == len(loader)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    seen = sum(batches, [])
    assert len(set(seen)) == len(seen)
    if not drop_last:
        assert sorted(seen) == list(range(length))
    if not shuffle:
        assert seen == list(range(len(seen)))


def test_order_depends_on_seed_and_epoch_only():
    def epochs(count, **arguments):
        loader = DataLoader(TensorDataset(np.arange(30)), 7, shuffle=True, **arguments)
        return [numbers(loader) for _ in range(count)]

    first = epochs(3, seed=11)
    np.random.seed(0)
    assert epochs(3, seed=11) == first
    assert first[0] != first[1] != first[2]
    assert epochs(1, seed=12)[0] != first[0]
    loader = DataLoader(TensorDataset(np.arange(30)), 7, shuffle=True, seed=11)
    loader.set_epoch(2)
    assert loader.epoch == 2 and numbers(loader) == first[2]
    # The order of samples does not depend on how they are cut into batches.
    other = DataLoader(TensorDataset(np.arange(30)), 30, shuffle=True, seed=11)
    assert numbers(other)[0] == sum(first[0], [])


def test_seed_comes_from_manual_seed_or_a_generator():
    state = default_generator.get_state()
    try:
        default_generator.manual_seed(5)
        assert DataLoader(np.arange(3), shuffle=True).seed == 5
    finally:
        default_generator.set_state(state)
    one, two = (DataLoader(np.arange(3), generator=np.random.default_rng(2)).seed for _ in range(2))
    assert one == two
    with pytest.raises(ValueError, match="not both"):
        DataLoader(np.arange(3), generator=np.random.default_rng(2), seed=1)


@settings(max_examples=40, deadline=None)
@given(stop=st.integers(0, 9), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_goes_on_in_the_middle_of_an_epoch(stop, epoch, shuffle):
    def make():
        return DataLoader(TensorDataset(np.arange(23)), 3, shuffle, seed=4)

    full = make()
    expected = [numbers(full) for _ in range(epoch + 2)]
    loader = make()
    loader.set_epoch(epoch)
    done = []
    state = loader.state_dict()
    for batch in loader:
        if len(done) == stop:
            break
        done.append(batch[0].numpy().tolist())
        state = loader.state_dict()
    other = DataLoader(TensorDataset(np.arange(23)), 3, shuffle, seed=999)
    other.load_state_dict(state)
    rest = numbers(other)
    if stop < 8:
        assert done + rest == expected[epoch]
        assert numbers(other) == expected[epoch + 1]
    else:  # the epoch was over: the next one follows
        assert rest == expected[epoch + 1]


def test_after_a_break_the_next_epoch_is_whole():
    loader = DataLoader(TensorDataset(np.arange(6)), 2, seed=0)
    for _ in loader:
        break
    assert numbers(loader) == [[0, 1], [2, 3], [4, 5]] and loader.epoch == 2


def test_load_state_refuses():
    loader = DataLoader(TensorDataset(np.arange(6)), 2, seed=0)
    state = loader.state_dict()
    assert state == {"seed": 0, "epoch": 0, "batch": 0, "samples": 6, "batch_size": 2}
    with pytest.raises(ValueError, match="lacks"):
        loader.load_state_dict({"seed": 0})
    with pytest.raises(ValueError, match="7 samples"):
        loader.load_state_dict({**state, "samples": 7})
    with pytest.raises(ValueError, match="batch 9"):
        loader.load_state_dict({**state, "batch": 9})
    with pytest.raises(ValueError, match="an epoch with batches of 3, and this loader makes .* 2"):
        loader.load_state_dict({**state, "batch": 1, "batch_size": 3})
    loader.load_state_dict({**state, "epoch": 1, "batch_size": 3})  # at its beginning all are alike
    assert loader.epoch == 1


def test_what_is_interrupted_before_its_first_batch_goes_on_with_it():
    loader = DataLoader(TensorDataset(np.arange(8)), 2, seed=0)
    loader.load_state_dict({"seed": 0, "epoch": 3, "batch": 2, "samples": 8})
    batches = iter(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (3, 2)
    next(batches)
    iter(loader)  # the next epoch, of which nothing was given yet
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (4, 0)


def test_kinds_of_data():
    x = np.arange(8, dtype=np.float64).reshape(4, 2)
    (batch,) = list(DataLoader(x, 4))[0:1]
    assert isinstance(batch[0], Tensor) and batch[0].dtype == np.float64
    pairs = [(np.full(2, i, np.float32), i) for i in range(3)]
    bx, by = next(iter(DataLoader(pairs, 2)))
    assert bx.shape == (2, 2) and by.numpy().tolist() == [0, 1]
    mapping = [{"image": np.zeros(2), "label": 1}, {"image": np.ones(2), "label": 0}]
    assert next(iter(DataLoader(mapping, 2)))["label"].numpy().tolist() == [1, 0]
    subset = Subset(TensorDataset(np.arange(5)), [4, 2])
    assert numbers(DataLoader(subset, 2)) == [[4, 2]]
    text, lengths = next(iter(DataLoader([("a", 1), ("bc", 2)], 2)))  # strings stay what they are
    assert text == ("a", "bc") and lengths.numpy().tolist() == [1, 2]
    files = DataLoader(["a", "bcd"], 2, collate_fn=lambda names: ([*names], len(names)))
    assert next(iter(files))[0] == ("a", "bcd")
    with pytest.raises(TypeError, match="a dict with the keys 'x', 'y' is no dataset; give"):
        DataLoader({"x": np.zeros(3), "y": np.zeros(3)})
    joined = DataLoader(pairs, 3, collate_fn=lambda items: np.array([i for _, i in items]))
    assert next(iter(joined)).numpy().tolist() == [0, 1, 2]


class Words(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return np.float32(index)


class Doubled(TensorDataset):
    """Redefines single samples, not `take`."""

    def __getitem__(self, index):
        return 2 * self.arrays[0][index]


class Halved(TensorDataset):
    def take(self, indices):
        return tuple(field / 2 for field in super().take(indices))


def test_a_dataset_that_redefines_its_samples_is_heard():
    """Also when there is a device to keep arrays on, or a transform that gathers by itself."""
    x = np.arange(4.0)
    augment = ImageAugmentation(channels_last=True, scale=1.0).eval()
    images = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    for device in (None, "cpu"):
        doubled = DataLoader(Subset(Doubled(x), [3, 1]), 2, device=device)
        assert next(iter(doubled)).numpy().tolist() == [6, 2]
        assert numbers(DataLoader(Halved(x), 4, device=device)) == [[0, 0.5, 1, 1.5]]
        loader = DataLoader(Halved(images), 4, device=device, transform=augment)
        assert next(iter(loader))[0].numpy().ravel().tolist() == [0, 0.5, 1, 1.5]
    assert type(Halved(x).to("cpu")) is Halved


def test_a_part_of_a_mapped_file_is_not_read_at_once(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(9, 2))
    loader = DataLoader(Subset(TensorDataset(mapped), range(5)), 2, device="cpu")
    assert isinstance(loader.dataset, Subset) and len(numbers(loader)) == 3


def test_plain_samples_become_one_tensor():
    assert [batch.numpy().tolist() for batch in DataLoader(Words(), 2)] == [[0.0, 1.0], [2.0]]


def test_transform_depends_on_seed_epoch_and_batch():
    def noise(fields, rng):
        return (fields[0] + rng.normal(size=fields[0].shape), *fields[1:])

    def run(seed):
        loader = DataLoader(np.zeros((6, 2)), 3, seed=seed, transform=noise)
        return [batch[0].numpy() for _ in range(2) for batch in loader]

    one, two, other = run(1), run(1), run(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert len({a.tobytes() for a in one + other}) == 8


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4"])
def test_refuses_batch_size(size):
    with pytest.raises(ValueError, match="batch_size"):
        DataLoader(np.arange(4), size)


def test_refuses_empty_data():
    with pytest.raises(ValueError, match="no samples"):
        DataLoader(np.zeros((0, 2)), 2)
    with pytest.raises(ValueError, match="no full batch"):
        DataLoader(np.arange(3), 4, drop_last=True)


def test_the_arguments_that_scripts_give_for_workers_change_nothing():
    given = DataLoader(np.arange(5), 2, num_workers=4, pin_memory=True, persistent_workers=True)
    assert [batch[0].tolist() for batch in given] == [[0, 1], [2, 3], [4]]
