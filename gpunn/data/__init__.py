"""Datasets, splits, loaders, scaling and transforms of input data."""

from gpunn.data.audio import (
    log_mel_spectrogram,
    mel_filters,
    read_wave,
    resample,
    time_stretch,
    trim_silence,
    write_wave,
)
from gpunn.data.dataset import Dataset, Subset, TensorDataset, collate
from gpunn.data.datasets.digits import load_digits
from gpunn.data.datasets.images import (
    load_cifar10,
    load_cifar100,
    load_fashion_mnist,
    load_mnist,
    read_idx,
)
from gpunn.data.datasets.sentiment import (
    IMDB_CLASSES,
    TWEET_CLASSES,
    load_imdb,
    load_tweets,
)
from gpunn.data.datasets.series import (
    Series,
    load_ett,
    load_index_prices,
    load_seattle_temperatures,
    load_seattle_weather,
    load_tmy3,
    read_series,
)
from gpunn.data.datasets.speech import (
    SPOKEN_DIGITS,
    SpeechCommands,
    load_speech_commands,
    load_spoken_characters,
)
from gpunn.data.datasets.tables import BREAST_CANCER_FEATURES, load_breast_cancer
from gpunn.data.datasets.text import load_python_documentation, read_text
from gpunn.data.datasets.timeseries import load_japanese_vowels, read_ts
from gpunn.data.datasets.translation import load_interface_sentences, load_tatoeba
from gpunn.data.files import Samples, read_samples
from gpunn.data.loader import DataLoader
from gpunn.data.scaling import Normalizer
from gpunn.data.sequences import TrimPadding, pad_sequences
from gpunn.data.splits import Split, random_split, split_indices, train_validation_test_split
from gpunn.data.subwords import Subwords
from gpunn.data.transforms import ImageAugmentation, RandomAffine
from gpunn.data.vocabulary import Vocabulary, split_words
from gpunn.data.windows import SlidingWindows

__all__ = [
    "BREAST_CANCER_FEATURES",
    "SPOKEN_DIGITS",
    "IMDB_CLASSES",
    "TWEET_CLASSES",
    "DataLoader",
    "Dataset",
    "ImageAugmentation",
    "Normalizer",
    "RandomAffine",
    "Samples",
    "Series",
    "SlidingWindows",
    "SpeechCommands",
    "Split",
    "Subset",
    "Subwords",
    "TensorDataset",
    "TrimPadding",
    "Vocabulary",
    "collate",
    "load_breast_cancer",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_ett",
    "load_fashion_mnist",
    "load_imdb",
    "load_index_prices",
    "load_interface_sentences",
    "load_japanese_vowels",
    "load_mnist",
    "load_python_documentation",
    "load_seattle_temperatures",
    "load_seattle_weather",
    "load_speech_commands",
    "load_spoken_characters",
    "load_tmy3",
    "load_tatoeba",
    "load_tweets",
    "log_mel_spectrogram",
    "mel_filters",
    "pad_sequences",
    "random_split",
    "read_idx",
    "read_samples",
    "read_series",
    "read_text",
    "read_ts",
    "read_wave",
    "resample",
    "split_indices",
    "split_words",
    "time_stretch",
    "train_validation_test_split",
    "trim_silence",
    "write_wave",
]
