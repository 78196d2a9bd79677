"""Embedding layers: rows of a table by their numbers."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.creation import empty
from gpunn.autograd.functions.embedding import check_sparse, normal_padding
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor
from gpunn.nn import functional as F
from gpunn.nn import init
from gpunn.nn.module import Module
from gpunn.nn.parameter import Parameter


class _Table(Module):
    """A table of rows with the options that both layers have."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None,
        max_norm: float | None, norm_type: float, scale_grad_by_freq: bool, sparse: bool,
        weight: Any, device: DeviceLike, dtype: DTypeLike,
    ):  # fmt: skip
        super().__init__()
        name = type(self).__name__
        check_sparse(name, sparse)
        sizes = {"num_embeddings": num_embeddings, "embedding_dim": embedding_dim}
        for argument, size in sizes.items():
            if not isinstance(size, Integral) or size < 1:
                raise ValueError(
                    f"{name}: {argument} is {size!r}; expected an integer of 1 or more"
                )
        self.num_embeddings, self.embedding_dim = int(num_embeddings), int(embedding_dim)
        self.padding_idx = normal_padding(name, padding_idx, self.num_embeddings)
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        shape = (self.num_embeddings, self.embedding_dim)
        if weight is not None:
            if tuple(weight.shape) != shape:
                raise ValueError(
                    f"{name}: the given weight has shape {tuple(weight.shape)}; expected {shape}"
                )
            self.weight = Parameter(weight)
        else:
            self.weight = Parameter(empty(*shape, device=device, dtype=dtype))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new rows from gpunn's generator: standard normal, the padding row 0."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0

    @classmethod
    def _on_rows(cls, embeddings: Tensor, freeze: bool, **options: Any) -> Any:
        if embeddings.ndim != 2:
            raise ValueError(
                f"{cls.__name__}.from_pretrained: embeddings has shape {tuple(embeddings.shape)}; "
                "expected (num_embeddings, embedding_dim)"
            )
        make: Any = cls  # a subclass, whose arguments are PyTorch's
        made = make(*embeddings.shape, _weight=embeddings, **options)
        made.weight.requires_grad = not freeze
        return made

    def extra_repr(self) -> str:
        parts = [f"{self.num_embeddings}, {self.embedding_dim}"]
        for name, usual in (
            ("padding_idx", None), ("max_norm", None), ("norm_type", 2.0),
            ("scale_grad_by_freq", False), ("mode", None),
        ):  # fmt: skip
            value = getattr(self, name, None)
            if value is not None and value != usual:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)


class Embedding(_Table):
    """Rows of a table by their numbers: integers of any shape -> (*shape, embedding_dim)

    Parameters: `num_embeddings` and `embedding_dim`, the size of the table; `padding_idx`, a row of
    zeros at first that gets no gradient; `max_norm`, `norm_type`, `scale_grad_by_freq` as in
    `functional.embedding`; `sparse` is refused.

    A layer that shares the table is made by assigning its parameter:
    ``head.weight = embedding.weight``.

    Attributes
    ----------
    weight : (num_embeddings, embedding_dim), standard normal at first
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        device: DeviceLike = None,
        dtype: DTypeLike = None,
    ):
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq,
            sparse, _weight, device, dtype,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None,
        max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Any:  # fmt: skip
        """A layer on given rows (V, D), which are not trained if `freeze`."""
        return cls._on_rows(
            embeddings, freeze, padding_idx=padding_idx, max_norm=max_norm, norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq, sparse=sparse,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        """Integers of any shape -> (*shape, embedding_dim)"""
        return F.embedding(
            input, self.weight, self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq,
        )  # fmt: skip


class EmbeddingBag(_Table):
    """The sum, mean or largest of the rows of each bag: (B, L), or (N,) with offsets -> (B, D)

    Parameters: as of `Embedding`, and `mode` ("mean", "sum", "max") and `include_last_offset` of
    `functional.embedding_bag`.

    Attributes
    ----------
    weight : (num_embeddings, embedding_dim), standard normal at first
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: DeviceLike = None,
        dtype: DTypeLike = None,
    ):
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq,
            sparse, _weight, device, dtype,
        )  # fmt: skip
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"EmbeddingBag: mode is {mode!r}; expected 'sum', 'mean' or 'max'")
        self.mode, self.include_last_offset = mode, include_last_offset

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, mode: str = "mean",
        sparse: bool = False, include_last_offset: bool = False, padding_idx: int | None = None,
    ) -> Any:  # fmt: skip
        """A layer on given rows (V, D), which are not trained if `freeze`."""
        return cls._on_rows(
            embeddings, freeze, max_norm=max_norm, norm_type=norm_type, mode=mode,
            scale_grad_by_freq=scale_grad_by_freq, sparse=sparse,
            include_last_offset=include_last_offset, padding_idx=padding_idx,
        )  # fmt: skip

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Integers (B, L), or (N,) with offsets (B,) -> (B, embedding_dim)"""
        return F.embedding_bag(
            input, self.weight, offsets, self.max_norm, self.norm_type, self.scale_grad_by_freq,
            self.mode, False, per_sample_weights, self.include_last_offset, self.padding_idx,
        )  # fmt: skip
