"""Warnings of NumPy are off inside, on outside, and switched off once where a step does so."""

import threading
import warnings

import numpy as np
import pytest

from gpunn.device.quiet import quiet, quietly

ZERO = np.zeros(1)


def warns() -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ZERO / ZERO
    return bool(caught)


def test_quiet_and_quietly_switch_warnings_off_and_on_again():
    assert warns()
    with quiet():
        assert not warns()
    assert warns()
    with quietly():
        with quiet(), quietly():
            assert not warns()
        assert not warns()  # not switched on by those inside
    assert warns()


def test_an_error_switches_them_on_again_and_threads_have_their_own():
    with pytest.raises(ZeroDivisionError), quietly():
        raise ZeroDivisionError
    assert warns()
    seen = []
    with quietly():
        thread = threading.Thread(target=lambda: seen.append((type(quiet()), warns())))
        thread.start()
        thread.join()
    assert seen == [(np.errstate, True)]
