"""Compiled steps as objects: methods, copies, threads, interruptions, memory."""

import copy
import gc
import pickle
import sys
import threading
import weakref
from pathlib import Path

import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.errors import StepError

sys.path.insert(0, str(Path(__file__).parent))
from compiled_job import DEVICE, STEPS, Job, Net, batch


def make_learner(compiled):
    class Learner:
        def __init__(self, seed):
            gpunn.manual_seed(seed)
            self.model, self.rate = Net().to(DEVICE), 1.0
            self.optimizer = optim.SGD(self.model.parameters(), lr=0.1)

        def step(self, x, y):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y) * self.rate
            loss.backward()
            self.optimizer.step()
            return loss

        if compiled:
            step = gpunn.compile(step)

    return Learner


def test_methods_belong_to_their_objects_and_copies_begin_anew():
    def trajectory(compiled):
        Learner = make_learner(compiled)
        learners = [Learner(1), Learner(2)]
        found = []
        for i in range(8):
            if i == 6:
                learners[0].rate = 2.0
            found += [learner.step(*batch(i)).item() for learner in learners]
        learners.append(copy.deepcopy(learners[0]))
        return found + [learner.step(*batch(0)).item() for learner in learners]

    assert trajectory(True) == trajectory(False)
    assert make_learner(True).step.name == "step"


def doubled(x):
    return x * 2


def test_a_step_is_pickled_without_its_captures():
    step = gpunn.compile(doubled, max_signatures=2)
    step(batch(0)[0])
    again = pickle.loads(pickle.dumps(step))
    assert (again.function, again.max_signatures, len(again._variants)) == (doubled, 2, 0)


def test_threads_have_steps_of_their_own():
    found = {}

    def train(number):
        job = jobs[number]
        found[number] = [job.step(*batch(i)).item() for i in range(8)]

    jobs = [Job(True), Job(True), Job(False)]
    threads = [threading.Thread(target=train, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2]

    inside, go_on, job = threading.Event(), threading.Event(), Job(False)

    def slow(x):
        inside.set()
        go_on.wait(10)
        return job.model(x)

    step = gpunn.compile(slow)
    thread = threading.Thread(target=step, args=batch(0)[:1])
    thread.start()
    inside.wait(10)
    with pytest.raises(StepError, match="called by two threads at a time"):
        step(batch(0)[0])
    go_on.set()
    thread.join()


def test_interrupted_steps_go_on():
    job, stops = Job(True), []

    class Stops(nn.Module):
        def forward(self, x):
            if stops:
                raise KeyboardInterrupt
            return x

    job.model.body.append(Stops())
    for i in range(STEPS):
        stops[:] = [1] if i in (1, 2, 4) else []
        if stops:
            with pytest.raises(KeyboardInterrupt):
                job.step(*batch(i))
        else:
            job.step(*batch(i))
    assert any(variant.state == "captured" for variant in job.step._variants.values())


def test_the_memory_of_a_step_goes_with_it(monkeypatch):
    from gpunn.device import emulated_step, graph

    owners = []

    def host_memory(size):
        address, owner = emulated_step.host_memory(size)
        owners.append(weakref.ref(owner))
        return address, owner

    monkeypatch.setattr(graph, "host_memory", host_memory)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            gpunn.manual_seed(1)
            model = Net().to(DEVICE)
            step = gpunn.compile(lambda x, model=model: model(x).sum())
            for i in range(5):
                step(batch(i)[0])
        del step, model
        assert len(owners) > 6 and not any(owner() is not None for owner in owners)
    finally:
        gc.enable()


def test_kinds_of_calls_share_an_arena_but_not_what_outlives_them():
    def trajectory(compiled):
        gpunn.manual_seed(1)
        model = Net().to(DEVICE)  # no optimizer has a place for its gradients

        def step(x, y, first):
            if first:
                for parameter in model.parameters():
                    parameter.grad = None
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        run = gpunn.compile(step, copy_outputs=False) if compiled else step
        found = []
        for i in range(12):
            x, y = batch(i % STEPS)
            rows = slice(None) if i % 2 else slice(3)
            losses = [run(x, y, first=True), run(x[rows], y[rows], first=False)]
            found += [loss.item() for loss in losses]
            found += [parameter.grad.numpy().sum() for parameter in model.parameters()]
        return found, run

    expected, _ = trajectory(False)
    found, step = trajectory(True)
    assert found == expected
    arenas = {variant.memory._arena[0] for variant in step._variants.values() if variant.memory}
    assert sum(variant.state == "captured" for variant in step._variants.values()) == 3
    assert len(arenas) == 1
