"""One of the two processes between which a candidate is timed: from the old tree or the new one.

``python -m gpunn.bench.candidate_child --device cuda`` is started by `gpunn.bench.candidates`,
never by hand. It reads requests and writes answers, each a JSON object on a line:

    {"do": "prepare", "kind": "case", "key": "softmax_forward 4096x1024 float32"}
        inputs, and a first call, which compiles: {"cache": ...}, of a product also {"off": ...}
        (the relative error of its result, against float64), of a step {"losses": ...}
    {"do": "calibrate"}              {"mode", "seconds" a call, "may_graph"}
    {"do": "calibrate", "graph": true}   the same, of calls replayed from a graph
    {"do": "sample", "number": 3}    {"seconds" a call}
    {"do": "release"}                {}

An answer {"error": ..., "lost": ...} says why there is none, and whether the process ends with it,
because its device no longer answers. Between an answer and the next request the GPU has
nothing to do, so that only one of many such processes works at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import gpunn.kernels
from gpunn.bench import products, stages, training
from gpunn.bench.candidate_patch import case_of, job_of, product_of
from gpunn.bench.cases import copies_for, last_level_cache, precision, room_for_copies, workload
from gpunn.bench.measure import graph_calls
from gpunn.bench.supervise import POISONED
from gpunn.bench.timing import Contestant, calibrate, captured, clock_for, one_line
from gpunn.device.device import Device
from gpunn.device.probe import import_cupy

TINY_SIZE = 64
# Seconds of a sample: twice what the microbenchmarks take, as few samples must do.
SAMPLE_SECONDS = {"case": 2e-3, "product": 2e-3, "step": 20e-3}
# What a process may believe to have of the GPU's memory: there are two, and contexts of others.
MEMORY_SHARE = 0.45


class Session:
    """What is prepared at the moment."""

    def __init__(self, device: Device, tiny: bool):
        self.device, self.tiny = device, tiny
        self._around = contextlib.ExitStack()
        self._clock: Any = None
        self._calls: Contestant | None = None
        self._chosen: Contestant | None = None  # the calls, or a graph of them
        self._inner, self._target, self._may_graph = 1, 0.0, False
        self._graph_calls = 1  # a replay goes through all sets of inputs

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        action = request.pop("do")
        return {
            "prepare": self.prepare,
            "calibrate": self.calibrate,
            "sample": self.sample,
            "release": self.release,
        }[action](**request)

    def prepare(self, kind: str, key: str) -> dict[str, Any]:
        """Make the inputs and call once; of a step go through the first losses."""
        self.release()
        self._graph_calls = graph_calls(1)
        make = {"case": self._case, "product": self._product, "step": self._step}[kind]
        run, calls, answer = make(key)
        mode = answer.pop("mode", "cpu" if self.device.type == "cpu" else "stream")
        self._calls = Contestant(mode, run, calls)
        self._target = 1e-3 if self.tiny else SAMPLE_SECONDS[kind]
        self._may_graph = mode == "stream"
        run(0)
        self._clock.synchronize()
        return answer

    def calibrate(self, graph: bool = False) -> dict[str, Any]:
        """How many calls fill a sample, of single calls or of a graph of them."""
        self._chosen = self._calls
        if graph:
            self._chosen = captured(self._calls, self._clock, self._graph_calls)
            self._chosen.name = "graph"
        self._inner = calibrate(self._chosen, self._clock, self._target)
        return {"mode": self._chosen.name, "may_graph": self._may_graph, **self.sample(0)}

    def sample(self, number: int) -> dict[str, Any]:
        """Seconds a call."""
        total = self._clock.time(self._chosen.run, number * self._inner, self._inner)
        return {"seconds": total / (self._inner * self._chosen.calls)}

    def release(self) -> dict[str, Any]:
        """Give the memory back."""
        self._calls = self._chosen = None
        self._around.close()
        self._clock = None
        gc.collect()  # what is compiled refers to itself
        stages.release(self.device)
        return {}

    # Each returns run(i), the calls that it makes, and the answer to the request, which for a step
    # holds the mode. Inputs and clock are made as by those who time the same for the tables.

    def _case(self, key: str) -> tuple[Callable[[int], Any], int, dict[str, Any]]:
        case = case_of(key)
        if self.tiny:
            case = dataclasses.replace(case, shape=tuple(min(n, TINY_SIZE) for n in case.shape))
        work, made = workload(case, self.device), gpunn.kernels.table()[case.primitive]
        self._graph_calls = graph_calls(len(work.sets))
        self._start_clock()
        return lambda i: work.sets[i % len(work.sets)].call(made), 1, {"cache": work.cache}

    def _product(self, key: str) -> tuple[Callable[[int], Any], int, dict[str, Any]]:
        product = product_of(key)
        if self.tiny:
            sizes = {name: min(getattr(product, name), TINY_SIZE) for name in ("M", "N", "K")}
            product = dataclasses.replace(product, **sizes)
        self._around.enter_context(precision(product.dtype))
        cache, copies = last_level_cache(self.device), 1
        if self.device.type == "cuda":
            copies = min(8, copies_for(product.bytes, cache, room_for_copies(self.device)))
        self._start_clock()
        sets = [products._operands(product, self.device, seed) for seed in range(copies)]
        calls = [products._ours(product, operands) for operands in sets]
        self._graph_calls = graph_calls(copies)
        cold = product.bytes * copies >= 2 * cache
        calls[0]()  # what fails is said here
        # The samples of a primitive's parity reach few of the kernels, and no TF32: so each product
        # that is timed is looked at as well.
        off = products._errors(product, sets[0], [Contestant("gpunn", lambda _: calls[0]())])
        answer = {"cache": "cold" if cold else "warm", "off": off["gpunn"]}
        return lambda i: calls[i % copies](), 1, answer

    def _step(self, key: str) -> tuple[Callable[[int], Any], int, dict[str, Any]]:
        memory, on_gpu = None, self.device.type == "cuda"
        if on_gpu:
            memory = int(MEMORY_SHARE * import_cupy().cuda.runtime.memGetInfo()[1])
        job = job_of(key).placed(self.device, memory)
        if self.tiny and not job.name.startswith("mlp"):
            raise ValueError("a dry run times steps of perceptrons alone")
        self._start_clock()
        name, racer = training.OUR_COMPILED, None
        if job.name.startswith("mlp"):
            with contextlib.suppress(ValueError):
                name, racer = training.OUR_FUSED, training.our_fused(job, self.device)
        if racer is None:
            step = training.our_step(job, self.device, compiled=True)
            racer = training.Racer(step, lambda steps: training.losses(step, steps))
        # Steps are traced, recorded and captured before they are replayed.
        losses = racer.losses(max(5, job.compared if not self.tiny else 0))
        if on_gpu and job.batch != job_of(key).batch:
            name += f", batch {job.batch}"
        answer = {"mode": name, "losses": losses, "compared": job.compared,
                  "tolerance": training.LOSS_TOLERANCE[job.precision]}  # fmt: skip
        return racer.run, racer.calls, answer

    def _start_clock(self) -> None:
        self._clock = self._around.enter_context(clock_for(self.device))


def main(arguments: list[str] | None = None) -> int:
    """Answer requests until there are no more; POISONED if the device was lost on the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parsed = parser.parse_args(arguments)
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    device = Device(parsed.device)
    session = Session(device, parsed.tiny)
    stages.poisoned(device)  # makes the context, while nobody waits for it
    for line in sys.stdin:
        lost = False
        try:
            answer = session.do(json.loads(line))
        except Exception as error:
            lost = stages.poisoned(device)
            answer = {"error": one_line(error), "lost": lost}
        answers.write(json.dumps(answer) + "\n")
        if lost:
            return POISONED
    return 0


if __name__ == "__main__":
    sys.exit(main())
