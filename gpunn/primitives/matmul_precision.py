"""How exactly float32 matrices are multiplied on GPUs with tensor cores."""

from __future__ import annotations

PRECISIONS = ("highest", "high", "medium")

_chosen = "highest"


def set_matmul_precision(precision: str) -> None:
    """Choose how float32 products are made on a GPU, as PyTorch's function of that name does.

    precision :
        "highest", the default: as exact as float32 arithmetic. Large products run on the tensor
        cores with each number as the sum of three bfloat16 numbers, which together hold all its
        24 bits.
        "high": operands rounded to TF32 (11 bits); an error near 3e-4 of the result.
        "medium": operands rounded to bfloat16 (8 bits) where the chip has a fast product for it
        (sm_90a), else as "high"; an error near 3e-3.

    Sums are made in float32 with each. Other dtypes and the CPU are not affected.
    """
    global _chosen
    if precision not in PRECISIONS:
        raise ValueError(
            f"set_matmul_precision: {precision!r} is none of "
            f"{', '.join(repr(known) for known in PRECISIONS)}"
        )
    _chosen = precision


def get_matmul_precision() -> str:
    """What `set_matmul_precision` was last given; "highest" at the start."""
    return _chosen
