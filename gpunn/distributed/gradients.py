"""`GradientSync`: the gradients of an optimizer, added up over ranks while backward is under way.

The gradients of a parameter group lie in one flat array, `Arena.gradients`. It is cut into buckets
of neighbouring parameters, from its end to its start, which is about the order in which backward
comes to them. A bucket's sum is begun as soon as the last of its gradients has come, and all are
waited for when backward has ended:

    backward   | last layer | … | … | first layer |
    buckets                 | 3 | 2 | 1 |         0 |  -> update

All ranks must begin them in the same order, whatever their own backward does. So the order is that
in which rank 0 completed them in its first backward, and a bucket waits for those before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpunn.autograd.mode import watching
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.distributed.group import Group
from gpunn.distributed.link import Pending

BUCKET_BYTES = 25 << 20  # as PyTorch's: large enough for the full bandwidth, several in a model


class Bucket:
    """Neighbouring parameters of an arena.

    Attributes
    ----------
    arena : theirs
    start, stop : their part of its flat arrays
    places : their numbers in the arena; those alone that require a gradient
    root : the rank that needs the sum; None for all
    missing : how many of them have not got their gradient in this backward
    """

    def __init__(self, arena: Any, start: int, stop: int, places: list[int], root: int | None):
        self.arena, self.start, self.stop = arena, start, stop
        self.places, self.root = places, root
        self.missing = len(places)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.arena.tensors[i] for i in self.places]

    def begin(self, group: Group) -> Pending:
        """Put all gradients into their places in the arena, zeros for those missing, and begin."""
        arena = self.arena
        for i, tensor in zip(self.places, self.tensors, strict=True):
            if tensor.grad is None:  # not all of its place: another bucket may have the rest
                start = max(arena.offsets[i], self.start)
                stop = min(arena.offsets[i] + arena.sizes[i], self.stop)
                arena.gradients[start:stop].view(np.uint8)[...] = 0  # CuPy has no bfloat16
            elif tensor.grad._array is not arena.slots[i]:
                arena.take_gradient(i)
        return group.begin_reduce(arena.gradients[self.start : self.stop], self.root)


class GradientSync:
    """Adds up the gradients of an optimizer's parameters over the ranks of a group.

    >>> sync = GradientSync(optimizer, group)
    >>> with sync.backward():
    ...     loss.backward()  # the sum of the ranks' losses is what shall be minimised
    >>> optimizer.step()

    A parameter without a gradient on this rank, but with one on another, gets zeros and so the sum
    of the others'. On the CPU the ranks agree on that anew in each backward, on a GPU in the first.

    Parameters
    ----------
    optimizer : of `gpunn.optim`; sharded by `Optimizer.shard`, each sum is made where it is needed
    group : the ranks
    bucket_bytes : the size of a bucket, but for single parameters that are larger

    Attributes
    ----------
    buckets : in the order in which they are begun
    tensors : the parameters that require a gradient
    failed : whether the gradients of the last backward are of no use, as some rank said

    Raises ValueError for bucket sizes below 1.
    """

    def __init__(self, optimizer: Any, group: Group, bucket_bytes: int = BUCKET_BYTES):
        if bucket_bytes < 1:
            raise ValueError(f"GradientSync: bucket_bytes must be 1 or more, got {bucket_bytes}")
        self.optimizer, self.group, self.bucket_bytes = optimizer, group, int(bucket_bytes)
        self.failed = False
        self.buckets: list[Bucket] = []
        self.tensors: list[Any] = []
        self._key: Any = None  # what the buckets were made for
        self._of: dict[int, list[Bucket]] = {}  # by id of the parameter
        self._left: dict[int, int] = {}  # gradients of a parameter that are still to come
        self._ordered = False  # whether the order is that of rank 0's backward
        self._walk: Any = None  # of the backward that is under way
        self._several = False  # whether there were several, so that none is known to be the last
        self._done: list[Bucket] = []  # as backward completed them, until then
        self._pending: list[Pending] = []  # of the first so many buckets
        self._used: Any = None  # on how many ranks each parameter had a gradient

    @contextlib.contextmanager
    def backward(self, failed: bool = False) -> Iterator[None]:
        """Around the backward whose gradients are to be added up over the ranks.

        Of several backwards that add to the same gradients it is the last one; where there are
        several within, the sums begin after them. `failed` says that this rank's gradients are of
        no use; then `failed` is True on all ranks afterwards. On the CPU alone: a GPU's host does
        not know.
        """
        self._prepare()
        with watching(self):
            yield
        self._finish(failed)

    # ---- buckets ---------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the buckets, if they are not those for the parameters as they are now."""
        self.optimizer.follow_parameters()
        arenas = self.optimizer.arenas
        tensors = [tensor for arena in arenas for tensor in arena.tensors]
        key = [*arenas, *(arena.bounds for arena in arenas), *(t._requires_grad for t in tensors)]
        if key != self._key:
            self._key, self._ordered, self._used, self._several = key, False, None, False
            self.tensors = [tensor for tensor in tensors if tensor._requires_grad]
            self.buckets = [bucket for arena in arenas for bucket in self._buckets(arena)]
            self._of = {}
            for bucket in self.buckets:
                for tensor in bucket.tensors:
                    self._of.setdefault(id(tensor), []).append(bucket)
        for bucket in self.buckets:
            bucket.missing = len(bucket.places)
        self._left.clear()
        self._done.clear()
        self._pending.clear()
        self._walk = None

    def _buckets(self, arena: Any) -> Iterator[Bucket]:
        """The buckets of an arena, from its end; where it is sharded, none lies in two parts."""
        parts = [(0, arena.size)] if arena.bounds is None else arena.bounds
        room = max(1, self.bucket_bytes // arena.dtype.itemsize)
        for root, (first, end) in reversed(list(enumerate(parts))):
            stop, places = end, []
            for i in reversed(range(len(arena.tensors))):
                start = max(first, arena.offsets[i])
                if start >= stop or arena.offsets[i] + arena.sizes[i] <= first:
                    continue
                if arena.tensors[i]._requires_grad:
                    places.append(i)
                if stop - start >= room or start == first:
                    if places:
                        owner = None if arena.bounds is None else root
                        yield Bucket(arena, start, stop, places, owner)
                    stop, places = start, []

    # ---- while backward is under way -------------------------------------------------------------

    def came(self, leaf: Tensor, walk: Any) -> None:
        """One more of a parameter's gradients has come."""
        if walk is not self._walk:
            self._several |= self._walk is not None
            self._walk = walk
        if self._several and self._pending:
            self._refuse_begun(leaf)
        left = self._left.get(id(leaf), walk.uses[id(leaf)]) - 1
        self._left[id(leaf)] = left
        if left:
            return
        for bucket in self._of.get(id(leaf), ()):
            bucket.missing -= 1
            if not bucket.missing:
                self._complete(bucket, walk)

    def _complete(self, bucket: Bucket, walk: Any) -> None:
        if not self._ordered or self._several:
            self._done.append(bucket)
            return
        while len(self._pending) < len(self.buckets):
            bucket = self.buckets[len(self._pending)]
            if bucket.missing:
                return
            for late in walk.late.values():
                late.deliver_to(*bucket.tensors)
            self._begin(bucket)

    def _refuse_begun(self, leaf: Tensor) -> None:
        begun = self.buckets[: len(self._pending)]
        if any(bucket in begun for bucket in self._of.get(id(leaf), ())):
            raise RuntimeError(
                f"GradientSync: a second backward adds to the gradient of a parameter of shape "
                f"{leaf.shape}, which is on its way to the other ranks, as there was one backward "
                "in the steps before. Put the last backward alone into sync.backward()"
            )

    def _begin(self, bucket: Bucket) -> None:
        for pending in self._pending:
            pending.poke()  # MPI gets on only while it is called
        self._pending.append(bucket.begin(self.group))

    # ---- when it has ended -----------------------------------------------------------------------

    def _finish(self, failed: bool) -> None:
        """Begin what is left, wait for all, and give their sums to those without a gradient."""
        mine = np.array([tensor.grad is not None for tensor in self.tensors] + [failed], np.int32)
        for bucket in self.buckets[len(self._pending) :]:
            self._begin(bucket)
        counts = self._counted(mine)
        for pending in self._pending:
            pending.wait()
        self.failed = bool(counts[-1])
        for number in np.flatnonzero(counts[:-1]):
            tensor = self.tensors[number]
            if mine[number]:
                tensor.grad._cell[0] += 1
            else:
                tensor.grad = wrap(tensor._grad_slot)
        if not self._ordered:
            self._learn_order()

    def _counted(self, mine: np.ndarray) -> np.ndarray:
        """On how many ranks each parameter has a gradient; on a GPU as it was the first time."""
        on_host = all(bucket.arena.device.type == "cpu" for bucket in self.buckets)
        if on_host:
            self._used = mine.copy()
            self.group.all_reduce(self._used)
        elif self._used is None:
            self._used = np.sum(self.group.exchange(mine.tolist()), axis=0)
        elif (mine > self._used).any():
            number = int(np.flatnonzero(mine > self._used)[0])
            raise RuntimeError(
                f"GradientSync: a parameter of shape {self.tensors[number].shape} has got a "
                f"gradient on rank {self.group.rank}, and had none on any rank in the first step. "
                "On a GPU the same parameters must be used in every step"
            )
        return self._used

    def _learn_order(self) -> None:
        """From now on in the order in which rank 0 completed them; those it did not, at the end."""
        numbers = {id(bucket): number for number, bucket in enumerate(self.buckets)}
        done = [numbers.pop(id(bucket)) for bucket in self._done]
        order = self.group.share(done + sorted(numbers.values()))
        self.buckets = [self.buckets[number] for number in order]
        self._ordered = True
