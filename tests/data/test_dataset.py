"""Datasets: what comes out is what went in, at the right place, or a sentence."""

import numpy as np
import pytest

from gpunn.autograd.tensor import Tensor
from gpunn.data import Dataset, Subset, TensorDataset, collate
from gpunn.data.dataset import as_dataset, take


def test_tensor_dataset_gives_samples_and_batches():
    x, y = np.arange(12.0).reshape(4, 3), np.arange(4)
    dataset = TensorDataset(x, Tensor(y))
    sample = dataset[2]
    assert len(dataset) == 4 and isinstance(sample[0], Tensor)
    assert sample[0].numpy().tolist() == [6.0, 7.0, 8.0] and sample[1].item() == 2
    taken_x, taken_y = dataset.take(np.array([3, 0]))
    assert taken_x.tolist() == [[9.0, 10.0, 11.0], [0.0, 1.0, 2.0]] and taken_y.tolist() == [3, 0]
    assert np.shares_memory(dataset.take(slice(1, 3))[0], x)  # a slice costs no copy
    assert np.shares_memory(dataset.tensors[0].array, x)


def test_python_numbers_become_float32_and_int64():
    dataset = TensorDataset([[0.5], [1.5]], [0, 1])
    assert dataset.arrays[0].dtype == np.float32 and dataset.arrays[1].dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ((), "at least one array"),
        ((np.zeros((3, 2)), np.zeros(4)), r"\[3, 4\] samples"),
        ((np.float32(3.0),), "single number"),
    ],
)
def test_tensor_dataset_refuses(arrays, words):
    with pytest.raises(ValueError, match=words):
        TensorDataset(*arrays)


def test_subset_of_subset():
    dataset = TensorDataset(np.arange(10))
    subset = Subset(Subset(dataset, [9, 7, 5, 3]), [2, -1])
    assert [subset[i][0].item() for i in range(len(subset))] == [5, 3]
    assert subset.take(np.array([1, 0]))[0].tolist() == [3, 5]
    assert subset.take(slice(0, 1))[0].tolist() == [5]
    assert len(Subset(dataset, [])) == 0
    assert [s[0].item() for s in map(subset[0:1].__getitem__, range(1))] == [5]


@pytest.mark.parametrize("indices", [[10], [-11]])
def test_subset_refuses_indices_outside(indices):
    with pytest.raises(IndexError, match="10 samples"):
        Subset(TensorDataset(np.arange(10)), indices)


def test_subset_refuses_masks_and_floats():
    with pytest.raises(ValueError, match="flat list of integers"):
        Subset(TensorDataset(np.arange(3)), np.array([True, False, True]))


class Squares(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return np.full(2, index, np.float32), index * index


def test_own_dataset_is_collated_one_by_one():
    x, y = take(Squares(), np.array([4, 1]))
    assert x.tolist() == [[4.0, 4.0], [1.0, 1.0]] and y.tolist() == [16, 1] and y.dtype == np.int64
    x, _ = Squares().take(slice(3, 99))
    assert x.tolist() == [[3.0, 3.0], [4.0, 4.0]]


def test_base_class_says_what_to_define():
    with pytest.raises(NotImplementedError, match="__len__"):
        len(Dataset())
    with pytest.raises(NotImplementedError, match="__getitem__"):
        Dataset()[0]


def test_collate():
    batch = collate([{"a": 1.0, "b": (2, 3)}, {"a": 4.0, "b": (5, 6)}])
    assert batch["a"].tolist() == [1.0, 4.0] and batch["a"].dtype == np.float32
    assert [field.tolist() for field in batch["b"]] == [[2, 5], [3, 6]]
    with pytest.raises(ValueError, match="different shapes"):
        collate([np.zeros(2), np.zeros(3)])
    with pytest.raises(ValueError, match="numbers of fields"):
        collate([(1, 2), (1, 2, 3)])
    with pytest.raises(ValueError, match="empty"):
        collate([])


def test_as_dataset():
    assert len(as_dataset([[1.0, 2.0], [3.0, 4.0]])) == 2
    samples = [(np.zeros(2), 0), (np.ones(2), 1), (np.ones(2), 2)]
    assert as_dataset(samples) is samples
    with pytest.raises(TypeError, match="got int"):
        as_dataset(3)
    with pytest.raises(ValueError, match="no samples"):
        as_dataset((np.zeros((0, 3)), np.zeros(0)))
    with pytest.raises(TypeError):
        as_dataset((np.zeros(2), ["cat", "dog"]))
