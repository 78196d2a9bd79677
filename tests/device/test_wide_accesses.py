"""Bandwidth kernels move 16 bytes at a time, several loads under way: read in their machine code.

From Volta to Blackwell an instruction is 16 bytes: its operation in bits 0 to 11, for a load or
store of memory the width in bits 73 to 75. No disassembler is needed for that.
"""

from __future__ import annotations

import struct

import pytest

from gpunn.device import compiler
from gpunn.device.arguments import _section

LOAD, STORE = 0x981, 0x986  # LDG and STG with a register for the address
BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 8, 6: 16}
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")


def accesses(source: str, expression: str, arch: str) -> list[tuple[str, int]]:
    """("load" or "store", bytes) of every access to memory, in the order of the code."""
    made = compiler.build(source, (expression,), arch)
    code = _section(made.cubin, f".text.{made.symbols[expression]}".encode())
    found = []
    for low, high in struct.iter_unpack("<QQ", code):
        kind = {LOAD: "load", STORE: "store"}.get(low & 0xFFF)
        if kind:
            found.append((kind, BYTES[high >> 9 & 7]))
    return found


# Kernel, 16-byte loads of each thread, all of them before its first store, and 16-byte stores.
KERNELS = [
    ("activation.cu", "activation_forward<float, Relu, true>", 4, 4),
    ("activation.cu", "activation_forward<float, Gelu, true>", 4, 4),
    ("activation.cu", "activation_forward<__nv_bfloat16, Gelu, true>", 4, 4),
    ("activation.cu", "activation_backward<float, Gelu, true>", 8, 4),
    ("activation.cu", "activation_backward<__half, Silu, true>", 8, 4),
    ("activation.cu", "activation_backward<double, Tanh, true>", 4, 2),
    ("activation_bias.cu", "activation_bias_backward<float, Relu, true>", 8, 4),
    ("activation_bias.cu", "activation_bias_backward<__nv_bfloat16, Gelu, true>", 8, 4),
    ("random.cu", "dropout<float, true>", 1, 1),
    ("random.cu", "dropout<__nv_bfloat16, true>", 1, 1),
    ("clip.cu", "clip_by_norm<float, true>", 4, 4),
    ("clip.cu", "penalty_gradient<float, true>", 8, 4),
    ("clip.cu", "sum_of_squares<float, true>", 4, 0),
    ("scale.cu", "scaled<__nv_bfloat16, __nv_bfloat16, false, true>", 4, 4),
    ("scale.cu", "scaled<float, __half, false, true>", 4, 0),
    ("scale.cu", "scaled<__nv_bfloat16, float, true, true>", 4, 4),
    ("scale.cu", "scaled<__nv_bfloat16, float, false, true>", 0, 4),
    ("cast.cu", "cast<float, __nv_bfloat16>", 4, 0),
    ("cast.cu", "cast<__nv_bfloat16, float>", 0, 4),
    ("cast.cu", "cast<__half, __nv_bfloat16>", 4, 4),
    ("amp.cu", "unscale_gradients<float, float>", 4, 4),
    ("loss.cu", "loss_backward<float, Huber, true>", 12, 4),
    ("optimizer.cu", "adam_update<float, false, true>", 8, 6),
    ("optimizer.cu", "sgd_update<float, true, true>", 6, 4),
    ("reduce.cu", "reduce_rows<SumOf<float>>", 4, 0),
    ("reduce.cu", "reduce_rows<SumOf<__nv_bfloat16>>", 4, 0),
    ("reduce.cu", "reduce_columns<SumOf<float>>", 4, 0),
    ("embedding.cu", "embedding_forward<uint4>", 4, 4),
    ("embedding.cu", "embedding_clear<uint4>", 0, 4),
    ("pooling.cu", "max_pool_forward<__half, 8>", 4, 3),  # values, and two of indices
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source, expression, loads, stores", KERNELS, ids=lambda v: str(v))
def test_loads_and_stores_are_wide(source, expression, loads, stores, arch):
    found = accesses(source, expression, arch)
    assert found.count(("load", 16)) == loads and found.count(("store", 16)) == stores, found
    if stores:
        assert found[: found.index(("store", 16))].count(("load", 16)) == loads, found
