"""Where a DataLoader keeps data, and their way to a device: the same batches by every way."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from gpunn.data import DataLoader, ImageAugmentation, RandomAffine, Subset, TensorDataset
from gpunn.data import loader as loader_module
from gpunn.device import device_of, probe
from gpunn.device.transfer import Uploader

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)

X = np.random.default_rng(0).integers(0, 256, (23, 3, 6, 5), dtype=np.uint8)
Y = np.arange(23)


def bits(loader, epochs=2):
    return [tuple(field.numpy().tobytes() for field in b) for _ in range(epochs) for b in loader]


def augmentation():
    return ImageAugmentation(crop=2, cutout=2, mean=0.5, std=(0.2, 0.3, 0.4))


@emulated
@pytest.mark.parametrize("augmented", [False, True])
def test_every_way_gives_the_same_batches(augmented):
    """On the CPU, kept on the device, uploaded, with workers, and a part of a larger dataset."""
    arguments = {"shuffle": True, "seed": 5}
    if augmented:
        arguments["transform"] = augmentation()
    expected = bits(DataLoader((X, Y), 8, **arguments))
    larger = TensorDataset(np.concatenate([X, X]), np.concatenate([Y, Y]))
    for data, more in (
        ((X, Y), {"device": "emulator"}),
        ((X, Y), {"device": "emulator", "resident": False}),
        ((X, Y), {"device": "emulator", "resident": False, "num_workers": 2}),
        (Subset(larger, range(23)), {"device": "emulator", "resident": True}),
        (list(zip(X, Y, strict=True)), {"device": "emulator", "num_workers": 2}),
    ):
        loader = DataLoader(data, 8, **arguments, **more)
        assert bits(loader) == expected, loader.plan
        loader.set_epoch(1)
        batches = iter(loader)
        assert device_of(next(batches)[0].array).type == "emulator"
        batches.close()
        assert loader.state_dict()["batch"] == 1
        loader.load_state_dict(loader.state_dict())
        assert bits(loader, 1) == expected[4:], loader.plan


@emulated
def test_what_was_chosen():
    def plan(data=(X, Y), **arguments):
        loader = DataLoader(data, 8, device="emulator", **arguments)
        return loader.plan, device_of(getattr(loader.dataset, "arrays", (X,))[0]).type

    assert plan() == ("23 samples (2.20 KiB) are kept on emulator", "emulator")
    text, place = plan(num_workers=2)
    assert text.endswith("kept on emulator; there is nothing for workers to do")
    assert place == "emulator"
    text, place = plan(num_workers=2, transform=RandomAffine((6, 15)))
    assert place == "cpu" and text == (
        "23 samples (2.20 KiB) stay on the host, because workers are to transform them there; to "
        "emulator copied batch by batch; 2 worker threads make up to 4 batches ahead"
    )
    text, place = plan(resident=False, transform=augmentation())
    assert place == "cpu" and text.endswith("batch by batch; ImageAugmentation runs there")
    part = Subset(TensorDataset(X, Y), [1, 2])
    assert plan(part) == ("2 samples (196 B) are kept on emulator", "emulator")


def test_arrays_that_are_too_large_stay_on_the_host(monkeypatch):
    loader = DataLoader((X, Y), 8)
    gpu = SimpleNamespace(type="cuda")
    monkeypatch.setattr(loader_module, "device_of", lambda array: "cpu")
    for free, stay in ((2 * (X.nbytes + Y.nbytes), False), (2 * (X.nbytes + Y.nbytes) - 1, True)):
        monkeypatch.setattr(loader_module, "free_memory", lambda device, free=free: free)
        why = loader._reason_to_keep(loader.dataset, gpu)
        assert bool(why) == stay
    assert why.startswith("because they need 2.20 KiB and namespace(type='cuda') has 4.40 KiB free")


class Driver:
    """Copies are done when something waits for them; `log` has what happened to which batch."""

    def __init__(self):
        self.log, self.left, self.events = [], [], 0

    activate = staticmethod(contextlib.nullcontext)
    stream = current = staticmethod(lambda: None)
    capturing = done = staticmethod(lambda *_: False)
    synchronize = wait_for = staticmethod(lambda event: None)

    def record(self, stream):
        self.events += 1
        return self.events

    def wait(self, stream, event):
        for number, work in list(self.left):
            if number <= event:
                work()
                self.left.remove((number, work))

    def pinned(self, size):
        return np.zeros(size, np.uint8)

    memory = pinned

    def array(self, memory, shape, dtype, owner):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return memory[:size].view(dtype).reshape(shape)

    def copy(self, target, source, stream):
        self.log.append(("sent", int(source[0])))
        work = lambda: np.copyto(target.reshape(-1).view(np.uint8), source)  # noqa: E731
        self.left.append((self.events + 1, work))


@pytest.mark.parametrize("arguments", [{}, {"num_workers": 2}], ids=["alone", "workers"])
def test_the_next_batches_are_on_their_way(monkeypatch, arguments):
    driver = Driver()
    monkeypatch.setattr(
        loader_module, "Uploader", lambda device, depth: Uploader("cpu", depth, driver)
    )
    data = np.repeat(np.arange(7, dtype=np.uint8), 4)
    loader = DataLoader((data,), 4, device="cpu", **arguments)
    for number, (batch,) in enumerate(loader):
        driver.log.append(("given", number))
        assert batch.numpy().tolist() == [number] * 4
        assert loader.state_dict()["batch"] == (number + 1) % 7
    sent, given = ([driver.log.index((what, n)) for n in range(7)] for what in ("sent", "given"))
    assert all(sent[n + 2] < given[n] for n in range(5))  # two are under way when one is given
    assert all(sent[n + 3] > given[n] for n in range(4))  # and no more
    loader.close()


def test_an_error_comes_after_the_batches_before_it(monkeypatch):
    monkeypatch.setattr(
        loader_module, "Uploader", lambda device, depth: Uploader("cpu", depth, Driver())
    )

    def transform(fields, rng):
        if fields[0][0] == 8:
            raise ValueError("no eight")
        return fields

    seen = []
    with pytest.raises(ValueError, match="no eight"):
        for (batch,) in DataLoader((np.arange(20.0),), 4, device="cpu", transform=transform):
            seen.append(batch.numpy()[0])
    assert seen == [0, 4]


def test_the_layout_of_images_survives_the_way(monkeypatch):
    monkeypatch.setattr(
        loader_module, "Uploader", lambda device, depth: Uploader("cpu", depth, Driver())
    )
    images = X.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    (batch,) = next(iter(DataLoader([(i,) for i in images], 8, device="cpu",
                                    collate_fn=lambda _: (images[:8],))))  # fmt: skip
    np.testing.assert_array_equal(batch.numpy(), images[:8])
    assert batch.array.strides == images.strides


def test_refusals():
    with pytest.raises(ValueError, match="resident is 'yes'; expected True, False or 'auto'"):
        DataLoader((X, Y), resident="yes")
    for data, more in (((X, Y), {}), ([(X[0], 1)], {"device": "cpu"})):
        with pytest.raises(ValueError, match="resident=True .* needs device= and a dataset of arr"):
            DataLoader(data, resident=True, **more)
