"""The picture of quantiles: what it draws, and what it refuses."""

import numpy as np
import pytest

from gpunn.train.plots import plot_quantiles


def test_shares_below():
    true = np.arange(10.0)
    exact = np.tile([0.5, 4.5, 8.5], (10, 1))  # 1, 5 and 9 of ten lie below
    figure = plot_quantiles((0.1, 0.5, 0.9), {"a": exact, "b": exact - 2}, true)
    _, first, second = figure.axes[0].get_lines()
    np.testing.assert_allclose(first.get_ydata(), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(second.get_ydata(), [0, 0.3, 0.7])
    with pytest.raises(ValueError, match=r"shape \(10, 3\); expected \(10, 2\)"):
        plot_quantiles((0.1, 0.9), exact, true)
