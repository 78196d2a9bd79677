"""The machine code of hot kernels: the instructions that their speed rests on are there.

NVIDIA's disassembler comes from a package, so no toolkit and no GPU are needed. What a kernel's
header says of its inner loop is counted here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from gpunn.device import compiler

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.M)


def disassembler() -> str:
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec else ():
        for found in Path(root).glob("*/bin/nvdisasm*"):
            if not os.access(found, os.X_OK):
                found.chmod(0o755)
            return str(found)
    pytest.fail("nvdisasm is missing: pip install nvidia-cuda-nvdisasm (it is in gpunn[test])")


def instructions(tmp_path, source: str, arch: str, expression: str) -> list[str]:
    """The opcodes of a kernel in the order of its machine code."""
    made = compiler.build(source, (expression,), arch)
    (report,) = made.reports
    assert not (report.stack or report.spill_stores or report.spill_loads)
    file = tmp_path / "kernel.cubin"
    file.write_bytes(made.cubin)
    text = subprocess.run(
        [disassembler(), "-c", str(file)], capture_output=True, text=True, check=True
    ).stdout
    found = INSTRUCTION.findall(text)
    assert len(found) > 20 and not [op for op in found if op.startswith(("LDL", "STL"))]
    return found


def count(found, *starts) -> int:
    return sum(op.startswith(starts) for op in found)


def loops(text_of, start: str) -> list[int]:
    """Distances, in instructions, between neighbours that start with `start`."""
    places = [i for i, op in enumerate(text_of) if op.startswith(start)]
    return [b - a for a, b in zip(places, places[1:], strict=False)]


BF16 = "__nv_bfloat16"
SHARE, NN, TN, TT = "false, false", "false, true", "true, true", "true, false"  # what is contiguous


@pytest.mark.parametrize(
    "kernel, in_a_block",
    [
        # one 64 x 256 x 16 for each 32 bytes of K of a line
        (f"{BF16}, 1, 128, 256, 2, false, 3, 2, {SHARE}, {NN}, DIRECT", 4),
        (f"{BF16}, 1, 256, 128, 2, false, 3, 2, {SHARE}, {TN}, DIRECT", 8),
        (f"{BF16}, 1, 128, 128, 2, true, 4, 2, {SHARE}, {TT}, FORWARD", 8),
        # once alone, once with the sums of the rows of A, 64 x 8 x 16
        (f"{BF16}, 1, 128, 256, 2, false, 3, 2, {SHARE}, {TN}, ROW_SUMS", 4 + 8),
        # three planes, two steps of 32 bytes: one large product and five small ones
        (f"float, 3, 128, 128, 2, false, 4, 2, {SHARE}, false, false, FORWARD", 12),
    ],
)
def test_products_with_wgmma(tmp_path, kernel, in_a_block):
    found = instructions(tmp_path, "matmul_wgmma.cu", "sm_90a", f"matmul_wgmma<{BF16}, {kernel}>")
    assert count(found, "HGMMA") == in_a_block
    # Little else is issued between them, and nothing is loaded or stored by hand.
    apart = sorted(loops(found, "HGMMA"))
    assert apart[-2 if "ROW_SUMS" in kernel else -1] <= 40  # with row sums there are two loops
    first = next(i for i, op in enumerate(found) if op.startswith("HGMMA"))
    last = max(i for i, op in enumerate(found) if op.startswith("HGMMA"))
    assert not count(found[first:last], "LDS", "STS", "LDG", "STG", "BAR")
    # Releasing a stage in another block must not fence the whole GPU.
    assert not count(found, "MEMBAR.ALL.GPU", "MEMBAR.SC", "ERRBAR")
    assert count(found, "UTMALDG") >= 2 and count(found, "USETMAXREG") == 2
    if "DIRECT" in kernel or "ROW_SUMS" in kernel:
        assert count(found, "UTMASTG") and count(found, "STSM.16.M88.4")
    assert not count(found, "LDG.E.U8", "ATOM", "RED.")


@pytest.mark.parametrize(
    "kernel, in_a_block",
    [
        ("128, 256, 2, false, 4, 2, OUTPUT, DIRECT", 4),
        ("256, 64, 2, false, 5, 2, INPUT, FORWARD", 8),
        ("128, 256, 2, false, 3, 2, WEIGHT, FORWARD", 4),
    ],
)
def test_convolutions_with_wgmma(tmp_path, kernel, in_a_block):
    """As products; the gathered operand is copied by the hardware's im2col."""
    expression = f"convolution_wgmma<{BF16}, {kernel}>"
    found = instructions(tmp_path, "convolution_wgmma.cu", "sm_90a", expression)
    assert count(found, "HGMMA") == in_a_block
    assert max(loops(found, "HGMMA")) <= 40
    assert count(found, "UTMALDG.4D.IM2COL") == count(found, "UTMALDG.5D.IM2COL") == 1
    assert count(found, "UTMALDG.4D.MULTICAST") and count(found, "USETMAXREG") == 2
    assert not count(found, "LDG.E.U8", "ATOM", "RED.")


@pytest.mark.parametrize("dtype, dim", [(BF16, 64), ("__half", 128)])
def test_attention_with_wgmma(tmp_path, dtype, dim):
    kernel = f"attention_forward_wgmma<{dtype}, {dim}>"
    found = instructions(tmp_path, "attention_wgmma.cu", "sm_90a", kernel)
    # Scores: D / 16 steps, for the first tile and in the loop; values: 8 steps, in the loop and for
    # the last tile.
    assert count(found, "HGMMA") == 2 * (dim // 16 + 8)
    places = [i for i, op in enumerate(found) if op.startswith("HGMMA")]
    begin, end = places[dim // 16], places[-9]  # in the loop
    assert not count(found[begin:end], "LDS", "STS", "LDG", "STG", "BAR.SYNC")
    # The exponentials run beside the product by values: behind the wait for the scores, before
    # the next one.
    waits = [i for i, op in enumerate(found) if op.startswith("WARPGROUP.DEPBAR") and i > end]
    assert count(found[waits[0] : waits[1]], "MUFU.EX2") == 128 // 2 + 2
    assert count(found, "UTMALDG") >= 3 * dim // 64 and count(found, "USETMAXREG") == 2


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_small_network_loads_weights_between_its_multiply_adds(tmp_path, arch):
    """Both products of `mlp_train`: 32 multiply-adds, then the next load into the same registers.

    Eight of them under way in each thread; gathered in one place they would hide nothing.
    """
    found = instructions(tmp_path, "mlp_train.cu", arch, "mlp_train<false>")
    places = [i for i, op in enumerate(found) if op == "LDG.E.128"]
    between = [found[a:b] for a, b in zip(places, places[1:], strict=False) if 36 <= b - a <= 52]
    assert sum(count(ops, "FFMA") == 32 for ops in between) == 2 * 7
    # What other blocks have written comes through the caches that a meeting has emptied.
    assert not [op for op in found if "CONSTANT" in op]
    assert count(found, "LD.E.STRONG.GPU") <= count(found, "CCTL.IVALL")
