"""Parts of batches: those of all ranks, one after the other, are the batch of one process."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn import tensor
from gpunn.autograd.tensor import Tensor
from gpunn.data import (
    DataLoader,
    Dataset,
    ImageAugmentation,
    RandomAffine,
    Subset,
    TensorDataset,
    TrimPadding,
)
from gpunn.data.parts import part_of_batch, parts_of, share
from gpunn.errors import WorkerError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (23, 3, 6, 5), dtype=np.uint8)
SAMPLES = np.arange(23)
LENGTHS = RNG.integers(1, 9, 23)


def leaves(batch):
    """The arrays of a batch, in order."""
    if isinstance(batch, dict):
        batch = tuple(batch.values())
    if isinstance(batch, tuple):
        return [leaf for one in batch for leaf in leaves(one)]
    return [batch.numpy() if isinstance(batch, Tensor) else batch]


def joined(loaders):
    """Whole batches from the loaders of all ranks; that rows and counts are right."""
    size = len(loaders)
    for batches in zip(*loaders, strict=True):
        rows = [loader.rows for loader in loaders]
        (whole,) = {whole for _, whole in rows}
        bounds = [share(whole, rank, size) for rank in range(size)]
        assert [own for own, _ in rows] == [stop - start for start, stop in bounds]
        found = [leaves(batch) for batch in batches]
        for (own, _), fields in zip(rows, found, strict=True):
            assert all(len(field) == max(own, 1) for field in fields)
        yield [
            np.concatenate([field[:own] for field, (own, _) in zip(column, rows, strict=True)])
            for column in zip(*found, strict=True)
        ]


def compared(size, *arguments, epochs=2, **options):
    """Check the loaders of `size` ranks against that of one process."""
    with contextlib.ExitStack() as stack:
        made = [DataLoader(*arguments, **options, part=(rank, size)) for rank in range(size)]
        one = DataLoader(*arguments, **options)
        for loader in (one, *made):
            stack.callback(loader.close)
        for _ in range(epochs):
            count = 0
            for whole, parts in zip(one, joined(made), strict=True):
                for a, b in zip(leaves(whole), parts, strict=True):
                    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
                assert one.rows == (len(parts[0]),) * 2
                assert all(loader.state_dict() == one.state_dict() for loader in made)
                count += 1
            assert count == len(one) == len(made[0]) and one.epoch == made[0].epoch


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 40),
    batch_size=st.integers(1, 17),
    size=st.integers(1, 9),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**50),
)
def test_parts_of_all_ranks_are_the_batch(samples, batch_size, size, shuffle, drop_last, seed):
    if drop_last and samples < batch_size:
        return
    data = np.arange(2.0 * samples).reshape(samples, 2), np.arange(samples)
    options = {"drop_last": drop_last, "seed": seed}
    compared(size, data, batch_size, shuffle, **options)
    bounds = [share(batch_size, rank, size) for rank in range(size)]
    assert bounds[0][0] == 0 and bounds[-1][1] == batch_size
    assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1


class Flip:
    """A transform that knows nothing of parts and mixes the rows of a batch."""

    def __call__(self, fields, rng):
        return {"x": fields[0][rng.permutation(len(fields[0]))], "rest": (fields[1],)}


class Noise:
    """One that knows parts, of fields in any order."""

    def __init__(self):
        self.seen = []

    def __call__(self, fields, rng):
        return self.part(fields, rng, 0, len(fields[1]))

    def part(self, fields, rng, start, count):
        self.seen.append(len(fields[1]))
        noise = rng.random(count)[start : start + len(fields[1])]
        return fields[0], fields[1] + noise


class Redefined(RandomAffine):
    """A subclass whose call differs from the part that it inherits."""

    def __call__(self, fields, rng):
        images, *rest = super().__call__(fields, rng)
        return (images[::-1], *rest)


TRANSFORMS = {
    "affine": lambda: RandomAffine((18, 5)),
    "augmentation": lambda: ImageAugmentation(2, cutout=3, brightness=0.1, contrast=0.2),
    "in evaluation": lambda: ImageAugmentation(2).eval(),
    "unknown": Flip,
    "known": Noise,
    "redefined": lambda: Redefined((18, 5)),
}


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_the_bits_of_one_process(name, size):
    data = IMAGES, SAMPLES
    compared(size, data, 4, True, seed=3, transform=TRANSFORMS[name](), epochs=1)
    compared(size, Subset(TensorDataset(*data), range(3, 20)), 7, transform=TRANSFORMS[name]())


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("name", ["none", "augmentation", "affine", "unknown", "trim"])
def test_on_a_device(name, resident):
    transform = {**TRANSFORMS, "none": lambda: None, "trim": TrimPadding}[name]()
    data = (IMAGES, SAMPLES)
    if name == "trim":
        data = (RNG.random((23, 9, 2)), LENGTHS)
    if name == "unknown":
        transform.on_device = True  # runs there, on whole batches that are uploaded
    options = {"device": "emulator", "resident": resident, "transform": transform, "seed": 1}
    compared(3, data, 10, shuffle=True, epochs=1, **options)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_workers_make_parts(kind):
    options = {"shuffle": True, "seed": 2, "transform": ImageAugmentation(2), "drop_last": True}
    workers = DataLoader(
        (IMAGES, SAMPLES), 7, **options, num_workers=1, worker_kind=kind, part=(1, 3)
    )
    whole = DataLoader((IMAGES, SAMPLES), 7, **options)
    for mine, all_rows in zip(workers, whole, strict=True):
        for a, b in zip(leaves(mine), leaves(all_rows), strict=True):
            assert a.tobytes() == b[2:4].tobytes()
        assert workers.rows == (2, 7)


def test_an_error_in_a_worker_names_the_rows_of_the_part():
    failing = DataLoader(Broken(), 6, num_workers=1, part=(1, 3))
    with pytest.raises(WorkerError, match=r"samples 2 to 3\) failed in a worker at sample 3"):
        list(failing)


class Broken(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return 1 // (3 - index)


class Sequences(Dataset):
    """Padded sequences given one by one; what was read is noted."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 23

    def __getitem__(self, index):
        self.read.append(index)
        return np.full((12,), index), LENGTHS[index]


@pytest.mark.parametrize("data", ["arrays", "subset", "samples"])
def test_sequences_are_cut_to_the_longest_of_the_whole_batch(data):
    sequences = np.repeat(SAMPLES[:, None], 12, 1), LENGTHS
    dataset = {
        "arrays": sequences,
        "subset": Subset(Subset(TensorDataset(*sequences), range(22)), range(21)),
        "samples": Sequences(),
    }[data]
    lengths = LENGTHS[: 21 if data == "subset" else 23]
    options = {"seed": 1, "transform": TrimPadding(multiple=1)}
    compared(4, dataset, 5, True, lengths=lengths, **options)
    compared(2, dataset, 5, **options)


def test_only_own_rows_are_read_and_collated():
    data = Sequences()

    def stack(samples):
        return np.stack([sequence for sequence, _ in samples])

    loader = DataLoader(data, 6, part=(1, 3), collate_fn=stack)
    batches = [batch.numpy()[:, 0].tolist() for batch in loader]
    assert batches == [[2, 3], [8, 9], [14, 15], [19, 20]]
    assert data.read == sum(batches, [])
    noise = Noise()
    list(DataLoader((IMAGES, SAMPLES), 6, part=(1, 3), transform=noise))
    assert noise.seen == [2, 2, 2, 2]


def test_a_loop_goes_on_with_another_number_of_ranks():
    """The state does not know of parts; a part set within a loop counts from the next loop on."""
    loader = DataLoader(np.arange(12), 4, True, seed=5, part=(0, 2))
    whole = [batch[0].numpy() for batch in DataLoader(np.arange(12), 4, True, seed=5)]
    batches = iter(loader)
    assert next(batches)[0].numpy().tolist() == whole[0][:2].tolist()
    loader.set_part(2, 3)
    state = loader.state_dict()
    assert next(batches)[0].numpy().tolist() == whole[1][:2].tolist()
    loader.load_state_dict(state)
    assert next(iter(loader))[0].numpy().tolist() == whole[1][2:].tolist()


def test_parts_of_loaders_and_of_other_batches():
    loader = DataLoader((np.arange(7.0), np.arange(7)), 3)
    for rank in range(2):
        listed = [(x.numpy(), y.numpy()) for x, y in DataLoader((np.arange(7.0), np.arange(7)), 3)]
        ours, theirs = (list(parts_of(data, rank, 2)) for data in (loader, listed))
        assert [found[1:] for found in ours] == [found[1:] for found in theirs]
        for (a, *_), (b, *_) in zip(ours, theirs, strict=True):
            assert [leaf.tolist() for leaf in leaves(a)] == [leaf.tolist() for leaf in b]
    assert loader.part == (0, 1)
    loader.set_part(1, 3)
    with pytest.raises(ValueError, match="gives part 1 of 3, and this is process 0 of 2"):
        next(parts_of(loader, 0, 2))


def test_a_loader_that_changes_its_batches_is_cut_as_a_whole():
    class Reversed(DataLoader):
        def __iter__(self):
            return ((x.numpy()[::-1],) for (x,) in super().__iter__())

    loader = Reversed(np.arange(7.0), 4)
    found = [[x.tolist() for (x,), *_ in parts_of(loader, rank, 2)] for rank in range(2)]
    assert found == [[[3.0, 2.0], [6.0]], [[1.0, 0.0], [5.0, 4.0]]]
    loader.set_part(0, 2)  # it would be cut twice
    with pytest.raises(ValueError, match="gives part 0 of 2, and this is process 0 of 2"):
        next(parts_of(loader, 0, 2))


def test_part_of_batch_keeps_the_form():
    texts, x = ["a", "b", "c"], np.arange(6).reshape(3, 2)
    found, own, whole = part_of_batch((tensor(x), texts), 1, 2)
    assert (own, whole) == (2, 3)
    assert found[0].tolist() == [[2, 3], [4, 5]] and found[1] == ["b", "c"]
    found, own, whole = part_of_batch({"x": x, "y": [1, 2, 3]}, 0, 4)
    assert (own, whole, found["y"]) == (0, 3, [1]) and found["x"].tolist() == [[0, 1]]
    found, *counts = part_of_batch([x, x], 3, 4)
    assert isinstance(found, list) and np.shares_memory(found[0], x) and counts == [1, 3]
    assert part_of_batch(x, 0, 1)[0].tolist() == x.tolist()
    assert part_of_batch((x[:0], []), 1, 2)[1:] == (0, 0)


def test_errors():
    for part in ((2, 2), (-1, 2), (0, 0), (True, 2), (0.0, 1)):
        with pytest.raises(ValueError, match=r"part is .*0 <= rank < size"):
            DataLoader(np.arange(4), part=part)
    with pytest.raises(ValueError, match="3 rows, 2 rows cannot be parted among 2 processes"):
        part_of_batch(([1, 2, 3], [1, 2]), 0, 2)
    with pytest.raises(ValueError, match="tuple with 3 rows, no rows"):
        part_of_batch(([1, 2, 3], 5), 0, 2)
    loader = DataLoader(np.arange(8.0), 4, transform=lambda fields, rng: fields[0][:1], part=(1, 2))
    with pytest.raises(ValueError, match=r"batch of 4 samples function made a field of shape \(1,"):
        next(iter(loader))
