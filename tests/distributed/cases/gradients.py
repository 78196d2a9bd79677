"""Gradients added up in buckets, against those of one process that has the whole batch."""

import numpy as np

import gpunn
from gpunn import nn, optim
from gpunn.distributed.gradients import GradientSync

RANKS = (2, 4)


class Branching(nn.Module):
    """Every kind of use: a weight used twice, one by rank 1 alone, one by none, one that is frozen.

    `wide` has more bytes than a bucket.
    """

    def __init__(self, dtype="float64"):
        super().__init__()
        self.first, self.twice = nn.Linear(6, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype)
        self.wide, self.sometimes = nn.Linear(8, 40, dtype=dtype), nn.Linear(8, 40, dtype=dtype)
        self.never, self.frozen = nn.Linear(3, 3, dtype=dtype), nn.Linear(40, 40, dtype=dtype)
        self.last = nn.Linear(40, 1, dtype=dtype)
        self.frozen.weight.requires_grad = False

    def forward(self, x, branch):
        x = self.twice(gpunn.tanh(self.twice(gpunn.tanh(self.first(x)))))
        x = self.wide(x) + self.sometimes(x) if branch else self.wide(x)
        return self.last(gpunn.tanh(self.frozen(x)))


def made(device="cpu", dtype="float64"):
    gpunn.manual_seed(3)
    model = Branching(dtype).to(device)
    names = [name for name, _ in model.named_parameters()]
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[n] for n in names if n.endswith("weight")]},
        {"params": [parameters[n] for n in names if n.endswith("bias")], "lr": 0.02},
    ]
    return model, optim.SGD(groups, lr=0.01, momentum=0.9)


def batches(steps=4, rows=8, dtype=np.float64):
    rng = np.random.default_rng(5)
    return [rng.standard_normal((rows, 6)).astype(dtype) for _ in range(steps)]


def whole(group, data, device="cpu", dtype="float64"):
    """Parameters after each step of one process; rank 1's rows take the branch."""
    model, optimizer = made(device, dtype)
    for x in data:
        optimizer.zero_grad()
        parts = np.array_split(x, group.size)
        for rank, part in enumerate(parts):
            out = model(gpunn.tensor(part, device=device), branch=rank == 1)
            (out.sum() / len(x)).backward()
        optimizer.step()
        yield {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def trained(group, data, device="cpu", dtype="float64", bucket_bytes=512):
    """The same by all ranks, each with its part."""
    model, optimizer = made(device, dtype)
    sync = GradientSync(optimizer, group, bucket_bytes)
    for x in data:
        optimizer.zero_grad()
        part = np.array_split(x, group.size)[group.rank]
        with sync.backward():
            out = model(gpunn.tensor(part, device=device), branch=group.rank == 1)
            (out.sum() / len(x)).backward()
        assert not sync.failed
        optimizer.step()
        yield model, sync


def case_same_steps_as_one_process(group):
    data = batches()
    pairs = zip(whole(group, data), trained(group, data), strict=True)
    for expected, (model, sync) in pairs:  # noqa: B007
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(
                parameter.detach().numpy(), expected[name], rtol=1e-12, err_msg=name
            )
        assert model.never.weight.grad is None and model.frozen.weight.grad is None
        assert model.sometimes.weight.grad is not None
    assert len(sync.buckets) > 6
    orders = group.exchange([[b.start, b.stop] for b in sync.buckets])
    assert all(order == orders[0] for order in orders)


def case_bits_are_the_same_on_all_ranks_and_for_all_buckets(group):
    data = batches(dtype=np.float32)
    found = []
    for size in (1, 700, 1 << 20):
        *_, (model, _) = trained(group, data, dtype="float32", bucket_bytes=size)
        found.append(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    assert found[0] == found[1] == found[2]
    assert len(set(group.exchange_bytes(found[0]))) == 1


def case_emulator(group):
    data = batches(2, dtype=np.float32)
    *_, expected = whole(group, data, "emulator", "float32")
    *_, (model, _) = trained(group, data, "emulator", "float32")
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            parameter.detach().numpy(), expected[name], rtol=2e-5, err_msg=name
        )


def case_sums_begin_before_backward_ends(group):
    """From the second step on: the first sum begins while the first layer has no gradient yet."""
    seen = []

    class Spy:
        def __init__(self):
            self.__dict__.update(group.__dict__)

        def __getattr__(self, name):
            return getattr(group, name)

        def begin_reduce(self, array, root=None):
            if array.dtype == np.float64:
                seen.append(model.first.weight.grad is None)
            return group.begin_reduce(array, root)

    model, optimizer = made()
    sync = GradientSync(optimizer, Spy(), 512)
    for x in batches(2):
        optimizer.zero_grad()
        seen.clear()
        with sync.backward():
            model(gpunn.tensor(x), branch=True).sum().backward()
    assert seen[0] and not seen[-1] and sum(seen) >= len(seen) // 2


def case_several_backwards(group):
    """Their sums begin after the last; one more than in the steps before is refused."""
    expected, found = ([], [])
    for several, values in ((False, expected), (True, found)):
        model, optimizer = made()
        sync = GradientSync(optimizer, group, 512)
        for x in batches(3):
            optimizer.zero_grad()
            out = model(gpunn.tensor(x), branch=True)
            with sync.backward():
                if several:
                    out[:3].sum().backward(retain_graph=True)
                    out[3:].sum().backward()
                else:
                    out.sum().backward()
            optimizer.step()
        values += [p.detach().numpy() for p in model.parameters()]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    model, optimizer = made()
    sync = GradientSync(optimizer, group, 512)
    for _ in range(2):
        with sync.backward():
            model(gpunn.tensor(batches()[0]), branch=True).sum().backward()
    with sync.backward():
        model(gpunn.tensor(batches()[0]), branch=True).sum().backward()
        try:
            model(gpunn.tensor(batches()[0]), branch=True).sum().backward()
        except RuntimeError as error:
            text = str(error)
    assert "a second backward adds to the gradient" in text


def case_one_rank_fails(group):
    model, optimizer = made()
    sync = GradientSync(optimizer, group)
    with sync.backward(failed=group.rank == 1):
        if group.rank != 1:
            model(gpunn.tensor(batches()[0]), branch=False).sum().backward()
    assert sync.failed
    with sync.backward():
        model(gpunn.tensor(batches()[0]), branch=False).sum().backward()
    assert not sync.failed


def case_autocast(group):
    """In bfloat16 the copies of a bucket are widened before it is summed."""
    results = []
    for size in (512, 1 << 20):
        model, optimizer = made(dtype="float32")
        sync = GradientSync(optimizer, group, size)
        for x in batches(3, dtype=np.float32):
            optimizer.zero_grad()
            part = np.array_split(x, group.size)[group.rank]
            with sync.backward():
                with gpunn.autocast("bfloat16"):
                    out = model(gpunn.tensor(part), branch=group.rank == 1)
                (out.float().sum() / len(x)).backward()
            optimizer.step()
        results.append([p.detach().numpy().copy() for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    reference, optimizer = made(dtype="float32")
    for x in batches(3, dtype=np.float32):
        optimizer.zero_grad()
        for rank, part in enumerate(np.array_split(x, group.size)):
            with gpunn.autocast("bfloat16"):
                out = reference(gpunn.tensor(part), branch=rank == 1)
            (out.float().sum() / len(x)).backward()
        optimizer.step()
    for one, other in zip(results[0], reference.parameters(), strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), rtol=1e-3, atol=1e-4)
