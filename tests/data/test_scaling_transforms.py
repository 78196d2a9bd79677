"""Normalizer and RandomAffine against their definitions; the digits as scikit-learn has them."""

import sys

import numpy as np
import pytest

from gpunn.data import Normalizer, RandomAffine, load_digits

sklearn = pytest.importorskip("sklearn")


def test_normalizer_against_scikit_learn():
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(3.0, [0.1, 5.0, 100.0], (40, 3))
    x[:, 1] = 0.1  # a constant column, whose computed deviation is not exactly 0
    expected = StandardScaler().fit_transform(x)
    normalizer = Normalizer()
    assert np.allclose(normalizer.fit_transform(x), expected, atol=1e-12)
    assert normalizer.scale[1] == 1.0
    assert np.allclose(normalizer.inverse_transform(expected), x)
    assert normalizer.transform(x.astype(np.float32)).dtype == np.float32
    assert normalizer.transform(x.astype(np.int64)).dtype == np.float32


def test_normalizer_of_images_and_its_state():
    x = np.arange(24.0).reshape(2, 3, 4)
    normalizer = Normalizer(per_feature=False).fit(x)
    assert normalizer.mean == 11.5 and normalizer.scale == pytest.approx(x.std())
    copy = Normalizer()
    copy.load_state_dict(normalizer.state_dict())
    assert np.array_equal(copy.transform(x), normalizer.transform(x)) and not copy.per_feature


def test_normalizer_refuses():
    normalizer = Normalizer()
    with pytest.raises(RuntimeError, match="fit first"):
        normalizer.transform(np.zeros((2, 2)))
    with pytest.raises(RuntimeError, match="fit first"):
        normalizer.state_dict()
    with pytest.raises(ValueError, match="at least one row"):
        normalizer.fit(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="NaN"):
        normalizer.fit([[1.0], [np.nan]])
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        normalizer.fit(np.ones((3, 2))).transform(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="mean and scale"):
        normalizer.load_state_dict({"mean": 0.0})
    with pytest.raises(ValueError, match="not > 0"):
        normalizer.load_state_dict({"mean": np.zeros(1), "scale": np.zeros(1)})


def rng(seed=0):
    return np.random.default_rng(seed)


def test_affine_without_change_is_the_identity():
    images = rng().random((5, 6, 7), np.float32)
    same = RandomAffine((6, 7), 0, 0, 0)
    out, label = same((images, "y"), rng())
    assert label == "y" and np.allclose(out, images, atol=1e-6)
    assert same.images(images.reshape(5, 42), rng()).shape == (5, 42)


class Fixed:
    """A generator whose normal deviates are given: angle, scale, row shift, column shift."""

    def __init__(self, *values):
        self.values = np.array(values, np.float32)

    def standard_normal(self, shape):
        return np.broadcast_to(self.values[:, None, None], shape)


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, 1), (-2, 1), (9, 0)])
def test_affine_shifts_whole_pixels(down, right):
    image = rng().random((1, 5, 4), np.float32)
    moved = RandomAffine((5, 4), 0, 0, 1.0, fill=-1.0).images(image, Fixed(0, 0, down, right))
    expected = np.full((5, 4), -1.0, np.float32)
    for row in range(5):
        for column in range(4):
            if 0 <= row - down < 5 and 0 <= column - right < 4:
                expected[row, column] = image[0, row - down, column - right]
    assert np.allclose(moved[0], expected, atol=1e-5)


def test_affine_turns_by_a_right_angle():
    image = rng().random((1, 5, 5), np.float32)
    turned = RandomAffine((5, 5), 90.0, 0, 0).images(image, Fixed(1, 0, 0, 0))[0]
    assert any(np.allclose(turned, np.rot90(image[0], k), atol=1e-4) for k in (1, 3))


def test_affine_half_pixel_is_the_mean_of_neighbours():
    image = np.array([[[0.0, 2.0, 6.0]]], np.float32)
    moved = RandomAffine((1, 3), 0, 0, 0.5, fill=0.0).images(image, Fixed(0, 0, 0, 1))
    assert np.allclose(moved, [[[0.0, 1.0, 4.0]]], atol=1e-6)


def test_affine_against_scipy():
    from scipy.ndimage import affine_transform

    image = rng(3).random((8, 8)).astype(np.float32)
    angle, scale, shift = 0.3, 1.2, (0.7, -0.4)
    out = RandomAffine((8, 8), np.degrees(1.0), 1.0, 1.0).images(
        image[None], Fixed(angle, scale - 1, *shift)
    )[0]
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    centre = np.array([3.5, 3.5])
    offset = centre - matrix @ centre - np.array(shift)
    expected = affine_transform(image, matrix, offset, order=1, mode="constant")
    # SciPy has no ring of background around the image: compare where both look inside.
    rows, columns = np.mgrid[:8, :8]
    at = np.tensordot(matrix, np.stack([rows, columns]), 1) + offset[:, None, None]
    inside = np.all((at >= 0) & (at <= 7), axis=0)
    assert inside.sum() > 30 and np.allclose(out[inside], expected[inside], atol=1e-5)


def test_affine_refuses():
    with pytest.raises(ValueError, match="height, width"):
        RandomAffine((8,))
    with pytest.raises(ValueError, match="zero or more"):
        RandomAffine((8, 8), degrees=-1)
    with pytest.raises(ValueError, match="8 x 8"):
        RandomAffine((8, 8)).images(np.zeros((2, 63), np.float32), rng())


def test_digits():
    x, y = load_digits()
    assert x.shape == (1797, 64) and x.dtype == np.float32 and y.dtype == np.int64
    assert x.min() == 0 and x.max() == 16 and np.bincount(y).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180
    ]  # fmt: skip


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        load_digits()
