"""Augmented images: against a plain reading of the definition, and by every implementation."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpunn
from gpunn import kernels, nn, optim
from gpunn.data import DataLoader, ImageAugmentation
from gpunn.device import probe
from gpunn.primitives import cpu_compiled
from gpunn.primitives.registry import using
from gpunn.train import Trainer

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def words_of(count, seed, offset):
    return kernels.random_bits(np.empty((count, 8), np.uint32), seed=seed, offset=offset)


def as_defined(
    images, words, size, padding, reflect, flip, cutout, brightness, contrast, scale, mean, std,
    fill,
):  # fmt: skip
    """The docstring, image by image in float64, with NumPy's own padding."""
    results = []
    h, w = size
    for image, word in zip(images, words.astype(np.float64), strict=True):
        mode = {"mode": "reflect"} if reflect else {"constant_values": np.nan}
        edges = ((padding, padding), (padding, padding), (0, 0))
        padded = np.pad(image.astype(np.float64), edges, **mode)
        unit = word / 2**32
        top, left = (int(unit[k] * (padded.shape[k] - n + 1)) for k, n in ((0, h), (1, w)))
        crop = padded[top : top + h, left : left + w]
        if np.floor(word[2] / 256) / 2**24 < flip:
            crop = crop[:, ::-1]
        r = 2 * np.floor(word[5:7] / 256) / 2**24 - 1
        outside = np.isnan(crop) & (not reflect)

        def finish(v, r=r):
            return (scale * v - mean) / std * (1 + contrast * r[0]) + brightness * r[1]

        shown = np.zeros(crop.shape) if fill is None else np.broadcast_to(finish(fill), crop.shape)
        result = np.where(outside, shown, finish(crop))
        y, x = (int(unit[3] * h) - cutout // 2, int(unit[4] * w) - cutout // 2)
        rows, columns = np.arange(h)[:, None], np.arange(w)
        square = (rows >= y) & (rows < y + cutout) & (columns >= x) & (columns < x + cutout)
        results.append(np.where(square[..., None], shown, result))
    return np.stack(results)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_as_it_is_defined(data):
    draw = data.draw
    height, width, channels = (draw(st.integers(1, n)) for n in (9, 8, 4))
    padding = draw(st.integers(0, 3))
    reflect = draw(st.booleans()) and padding < min(height, width)
    size = tuple(draw(st.integers(1, n + 2 * padding)) for n in (height, width))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    images = rng.integers(0, 256, (3, height, width, channels), dtype=np.uint8)
    if draw(st.booleans()):
        images = rng.normal(size=images.shape).astype(np.float32)
    settings = {
        "size": size, "padding": padding, "reflect": reflect,
        "flip": draw(st.sampled_from([0.0, 0.5, 1.0])), "cutout": draw(st.integers(0, 5)),
        "brightness": draw(st.sampled_from([0.0, 0.3])), "scale": 1 / 200,
        "contrast": draw(st.sampled_from([0.0, 0.4])),
        "fill": draw(st.sampled_from([None, 0.0, 99.0])),
        "mean": rng.random(channels), "std": rng.uniform(0.3, 1, channels),
    }  # fmt: skip
    seed, offset = draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**64 - 1))
    indices = draw(st.sampled_from([None, np.array([2, 0]), np.array([1, 1, 1, 0])]))
    chosen = images if indices is None else images[indices]
    expected = as_defined(chosen, words_of(len(chosen), seed, offset), **settings)
    for compiled in (False, True):
        with cpu_compiled.forced(compiled):
            got = kernels.augment_images(
                images, indices=indices, seed=seed, offset=offset, **settings
            )
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=3e-6)


def test_without_randomness_the_middle_is_normalised():
    images = np.arange(2 * 6 * 5 * 3, dtype=np.uint8).reshape(2, 6, 5, 3)
    mean, std = (1, 2, 3), (2, 4, 8)
    got = kernels.augment_images(
        images, random=False, size=(4, 3), mean=mean, std=std, flip=1.0, cutout=3, contrast=1.0
    )
    np.testing.assert_array_equal(got, (images[:, 1:5, 1:4] - np.float64(mean)) / std)
    for dtype in (np.float16, BFLOAT16):
        low = kernels.augment_images(images, random=False, dtype=dtype, scale=1 / 3)
        np.testing.assert_array_equal(low, (images * np.float32(1 / 3)).astype(dtype))


def test_choices_are_spread_evenly():
    """Each of the 5 x 5 places and both directions come equally often; cutouts everywhere."""
    image = np.arange(1, 26, dtype=np.float32).reshape(1, 5, 5, 1)
    indices = np.zeros(20_000, np.int64)
    kwargs = {"indices": indices, "padding": 2, "flip": 0.3, "seed": 4}
    middle = kernels.augment_images(image, size=(1, 1), **kwargs)[:, 0, 0, 0].astype(int)
    counts = np.bincount(middle, minlength=26)
    inside = 20_000 / 81  # of 9 x 9 places, of which 25 show a pixel
    assert np.all(np.abs(counts[1:] - inside) < 6 * np.sqrt(inside))
    whole = kernels.augment_images(image, **(kwargs | {"padding": 0}))
    mirrored = (whole[:, 0, 0, 0] == 5).mean()
    assert abs(mirrored - 0.3) < 6 * np.sqrt(0.21 / 20_000)
    cut = kernels.augment_images(image, indices=indices, cutout=1, seed=5) == 0
    assert (cut.sum((1, 2, 3)) == 1).all()
    assert np.all(np.abs(cut.sum((0, 3)) - 800) < 6 * np.sqrt(800))


@emulated
def test_strides_counters_and_indices_in_the_emulator():
    """(C, H, W) in memory, mirrored views, a counter against its values, and a missing image."""
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 256, (7, 3, 9, 8), dtype=np.uint8)
    counter = np.array([11, 2**64 - 1], np.uint64)
    kwargs = {"padding": 3, "flip": 0.5, "cutout": 3, "contrast": 0.5}
    for images in (stored.transpose(0, 2, 3, 1), stored.transpose(0, 2, 3, 1)[::-2, :, ::-1]):
        expected = kernels.augment_images(images, seed=11, offset=2, **kwargs)
        with using("emulator"):
            got = kernels.augment_images(images, seed=9, offset=3, counter=counter, **kwargs)
        np.testing.assert_array_equal(got, expected)
        again = kernels.augment_images(images, offset=3, counter=counter, **kwargs)
        np.testing.assert_array_equal(again, expected)
    there = gpunn.tensor(stored.transpose(0, 2, 3, 1).copy(), device="emulator")
    numbers = gpunn.tensor(np.array([3, 7, -1, 0]), device="emulator")
    got = gpunn.kernels.augment_images(there.array, indices=numbers.array, **kwargs).get()
    assert np.isnan(got[1:3]).all() and np.isfinite(got[[0, 3]]).all()


# ---- the transform -------------------------------------------------------------------------------

IMAGES = np.random.default_rng(3).integers(0, 256, (10, 3, 8, 6), dtype=np.uint8)


def test_as_a_transform_of_a_loader():
    augment = ImageAugmentation(crop=2, cutout=2, mean=0.5, std=(0.1, 0.2, 0.3))
    batches = [x for x, _ in DataLoader((IMAGES, np.arange(10)), 4, seed=1, transform=augment)]
    assert [x.shape for x in batches] == [(4, 3, 8, 6), (4, 3, 8, 6), (2, 3, 8, 6)]
    assert batches[0].array.transpose(0, 2, 3, 1).flags.c_contiguous
    # What a batch gets depends on seed, epoch and batch, not on how the samples are gathered.
    one_by_one = DataLoader(list(zip(IMAGES, range(10), strict=True)), 4, seed=1, transform=augment)
    for x, (z, _) in zip(batches, one_by_one, strict=True):
        np.testing.assert_array_equal(x.numpy(), z.numpy())
    (alone,) = DataLoader(IMAGES, 10, transform=augment.evaluation())
    mean, std = np.float32(0.5), np.array([0.1, 0.2, 0.3], np.float32).reshape(3, 1, 1)
    expected = (IMAGES / np.float64(255) - mean) / std
    np.testing.assert_allclose(alone[0].numpy(), expected, rtol=1e-5, atol=1e-5)
    assert augment.training and not augment.evaluation().training


def test_on_tensors():
    gpunn.manual_seed(7)
    augment = ImageAugmentation(crop=1, dtype="bfloat16", channels_last=True)
    x = gpunn.tensor(IMAGES.transpose(0, 2, 3, 1).copy(), device="cpu")
    one, two = augment(x), augment(x)
    assert one.dtype == BFLOAT16 and one.shape == x.shape
    assert not np.array_equal(one.numpy(), two.numpy())
    gpunn.manual_seed(7)
    np.testing.assert_array_equal(augment(x).numpy(), one.numpy())
    state = gpunn.get_rng_state()
    augment.eval()
    expected = (x.numpy() * np.float32(1 / 255)).astype(BFLOAT16)
    np.testing.assert_array_equal(augment(x).numpy(), expected)
    assert gpunn.get_rng_state() == state  # no draw
    copy = pickle.loads(pickle.dumps(augment.train()))
    gpunn.manual_seed(7)
    np.testing.assert_array_equal(copy(x).numpy(), one.numpy())
    assert "crop=1, cutout=0, flip=0.5" in repr(copy)


@emulated
def test_while_a_step_is_captured():
    """The draws count from the counter, so each repetition has other ones."""
    from gpunn.autograd.random import default_generator

    x = gpunn.tensor(IMAGES, device="emulator")
    augment = ImageAugmentation(crop=2)
    counter = gpunn.tensor(np.array([5, 40], np.uint64), device="emulator").array
    with default_generator.capturing(counter) as captured:
        made = [augment(x).numpy() for _ in range(2)]
    assert captured.draws == 2
    for number, got in enumerate(made):
        first = kernels.augment_images(
            IMAGES.transpose(0, 2, 3, 1), seed=5, offset=40 + number, padding=2, flip=0.5,
            scale=1 / 255,
        )  # fmt: skip
        np.testing.assert_array_equal(got, first.transpose(0, 3, 1, 2))


@emulated
def test_a_compiled_step_sees_its_settings():
    augment = ImageAugmentation(crop=2)
    step = gpunn.compile(lambda x: augment(x))
    x = gpunn.tensor(IMAGES, device="emulator")
    gpunn.manual_seed(5)
    eager = [augment(x).numpy() for _ in range(4)]
    gpunn.manual_seed(5)
    for expected in eager:
        np.testing.assert_array_equal(step(x).numpy(), expected)
    augment.eval()
    np.testing.assert_array_equal(step(x).numpy(), augment(x).numpy())


def test_bytes_reach_an_augmentation_in_the_model_of_a_trainer():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.augment, self.layer = ImageAugmentation(crop=1), nn.Linear(144, 4)

        def forward(self, x):
            assert x.dtype == np.uint8
            return self.layer(self.augment.train(self.training)(x).flatten(1))

    model = Network().to("cpu")
    trainer = Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters()), device="cpu")
    labels = (np.arange(10) % 4).astype(np.uint8)  # these become int64
    history = trainer.fit((IMAGES, labels), (IMAGES, labels), epochs=1, verbose=False)
    assert np.isfinite(history.records[0]["validation_loss"])


# ---- errors --------------------------------------------------------------------------------------

PIXELS = np.zeros((2, 4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"size": (5, 5)}, ValueError, r"size is \(5, 5\), and the padded image has 4 x 5 pixels"),
        ({"size": 3}, TypeError, "size is 3; expected .height, width. or None"),
        ({"padding": -1}, ValueError, "padding is -1; expected 0 to"),
        ({"padding": 1.5}, TypeError, "padding is 1.5; expected an integer"),
        ({"padding": 4, "reflect": True}, ValueError, "padding is 4 for images of 4 x 5 pixels"),
        ({"flip": 1.5}, ValueError, "flip is 1.5; expected a number from 0"),
        ({"brightness": np.nan}, ValueError, "brightness is nan"),
        ({"scale": 1e39}, ValueError, "scale is 1e"),
        ({"mean": (1, 2)}, ValueError, "mean has 2 numbers, and the images 3 channels; give one"),
        ({"mean": "x"}, TypeError, "mean is 'x'; expected a number, or one for each channel"),
        ({"std": (1, 2, 0)}, ValueError, "std is .*; expected numbers above 0"),
        ({"indices": np.array([0, 2])}, ValueError, "indices holds 2 at position 1; expected 0 to"),
        ({"indices": np.zeros(2)}, TypeError, "indices has .*float64.*expected dtype int64"),
        ({"dtype": np.int32}, TypeError, "dtype is int32; expected one of float32, float16"),
        ({"out": np.zeros((2, 4, 5, 3))}, TypeError, "out has .*float64"),
        ({"out": np.zeros((2, 4, 4, 3), np.float32)}, ValueError, "out has shape"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"counter": np.zeros(2)}, TypeError, "counter has .*expected dtype uint64"),
    ],
)
def test_errors(kwargs, error, text):
    with pytest.raises(error, match=f"augment_images: {text}"):
        kernels.augment_images(PIXELS, **kwargs)


def test_errors_of_images_and_of_the_transform():
    for images, error, text in (
        (PIXELS[0], ValueError, "4 dimensions"),
        (PIXELS.astype(np.float64), TypeError, "expected dtype uint8 or float32"),
        (PIXELS[:, :0], ValueError, "expected pixels in them"),
        (np.zeros((0, 1, 1, 2049), np.uint8), ValueError, "2048 at most|2048 channels"),
    ):
        with pytest.raises(error, match=text):
            kernels.augment_images(images)
    own = np.zeros((2, 4, 5, 3), np.float32)
    with pytest.raises(ValueError, match="out has .* memory of its own, but it overlaps images"):
        kernels.augment_images(own, out=own)
    rng = np.random.default_rng(0)
    with pytest.raises(TypeError, match="the batch is a dict with the keys .'x'."):
        ImageAugmentation()({"x": IMAGES}, rng)
    with pytest.raises(ValueError, match=r"shape \(10, 144\); expected \(N, C, H, W\)"):
        ImageAugmentation()((IMAGES.reshape(10, -1),), rng)
    with pytest.raises(ValueError, match="mean has 2 numbers for images of 3 channels"):
        ImageAugmentation(mean=(1, 2))((IMAGES,), rng)
    with pytest.raises(ValueError, match="std is 0; expected numbers above 0"):
        ImageAugmentation(std=0)
    with pytest.raises(ValueError, match="std is .*; expected a number, or one for each"):
        ImageAugmentation(std="wide")
    with pytest.raises(TypeError, match="expected a Tensor, or a batch and a NumPy Generator"):
        ImageAugmentation()(IMAGES)
    x = gpunn.tensor(np.zeros((1, 1, 2, 2), np.float32), device="cpu", requires_grad=True)
    with pytest.raises(ValueError, match="give images.detach"):
        ImageAugmentation()(x)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop": -1}, "crop is -1; expected 0 or more"),
        ({"cutout": -2}, "cutout is -2; expected 0 or more"),
        ({"flip": 1.5}, "flip is 1.5; expected a share from 0 to 1"),
        ({"contrast": float("nan")}, "contrast is nan; expected 0 or more"),
    ],
)
def test_what_is_no_augmentation_is_refused_at_once(options, text):
    with pytest.raises(ValueError, match=f"ImageAugmentation: {text}"):
        ImageAugmentation(**options)
