"""Datasets, splits, loaders, scaling and transforms of input data."""

from gpunn.data.dataset import Dataset, Subset, TensorDataset, collate
from gpunn.data.datasets.digits import load_digits
from gpunn.data.loader import DataLoader
from gpunn.data.scaling import Normalizer
from gpunn.data.splits import Split, random_split, split_indices, train_validation_test_split
from gpunn.data.transforms import ImageAugmentation, RandomAffine

__all__ = [
    "DataLoader",
    "Dataset",
    "ImageAugmentation",
    "Normalizer",
    "RandomAffine",
    "Split",
    "Subset",
    "TensorDataset",
    "collate",
    "load_digits",
    "random_split",
    "split_indices",
    "train_validation_test_split",
]
