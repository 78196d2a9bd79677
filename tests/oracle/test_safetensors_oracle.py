"""Model files are read and written alike by PyTorch and gpunn."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import io

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402


def test_pytorch_reads_our_bfloat16(tmp_path):
    values = np.array([1.5, -2.25, 3e38], dtype=ml_dtypes.bfloat16)
    io.save({"w": values}, tmp_path / "m.safetensors")
    tensor = load_file(tmp_path / "m.safetensors")["w"]
    assert tensor.dtype == torch.bfloat16
    assert tensor.float().tolist() == values.astype(float).tolist()
    save_file({"w": tensor}, tmp_path / "t.safetensors")
    assert np.array_equal(io.load_arrays(tmp_path / "t.safetensors")["w"], values)
