"""The autotuner: times the kernels that could make a product and remembers the fastest.

Off unless asked for with ``GPUNN_AUTOTUNE=1`` or `autotune`: then the first product of each kind
(dtype, sizes, layout, what is done to the sums) on a GPU runs all candidates, a few milliseconds
each time, and the fastest is kept in the cache folder, one JSON file for each kind of GPU. What the
file knows is also used when the autotuner is off.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpunn.device.recipe import Recorder
from gpunn.errors import LaunchError
from gpunn.primitives.matmul_option import Option
from gpunn.primitives.matmul_problem import Problem

_on = os.environ.get("GPUNN_AUTOTUNE", "0") not in ("", "0")
_forced: Callable[[list[Option]], Option] | None = None

# Candidates whose estimate is beyond this multiple of the best are not worth timing.
_WORTH_TIMING = 4.0
# Each is timed in rounds of repeats; 256 MB are filled in the time that queues some 20 launches.
_ROUNDS, _REPEATS, _HEAD_START = 5, 10, 256 << 20


def autotune(on: bool = True) -> None:
    """Switch the timing of matrix products on or off for this process.

    >>> gpunn.kernels.autotune()
    >>> y = x @ w        # the first of its kind times all candidates; the choice is kept on disk
    """
    global _on
    _on = bool(on)


@contextlib.contextmanager
def forcing(name: str) -> Iterator[None]:
    """Make every product inside with the option of this name; for tests and benchmarks.

    Raises LookupError where a product has no such option.
    """
    global _forced

    def pick(options: list[Option]) -> Option:
        for option in options:
            if option.name == name:
                return option
        known = ", ".join(option.name for option in options)
        raise LookupError(f"no option {name!r} for this product; there are {known}")

    before, _forced = _forced, pick
    try:
        yield
    finally:
        _forced = before


def is_on() -> bool:
    """Whether products of a new kind are timed."""
    return _on


def forced() -> Callable[[list[Option]], Option] | None:
    """What `forcing` has set."""
    return _forced


def best(launch, problem: Problem, options: list[Option], key: tuple) -> Option:
    """The option to use: the one remembered, the fastest by the clock, or the least estimate."""
    estimate = min(options, key=lambda option: option.seconds)
    gpu = _gpu_of(launch)
    if gpu is None or len(options) == 1:
        return estimate
    import hashlib  # not on the path of `import gpunn`, as json and tempfile below

    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
    known = {option.name: option for option in options}
    remembered = _file(gpu).get(digest)
    if remembered in known:
        return known[remembered]
    if not _on or _capturing():
        return estimate
    worth = [o for o in options if o.seconds <= _WORTH_TIMING * estimate.seconds]
    scratch = _elsewhere(launch.plain, problem)
    fastest = min(worth, key=lambda option: _seconds(launch.plain, scratch, option))
    _remember(gpu, digest, fastest.name)
    return fastest


def _gpu_of(launch) -> str | None:
    """The name of the GPU, or None where there is none to time on."""
    device = getattr(launch, "device", None)
    if device is None or device.type != "cuda":
        return None
    from gpunn.device.probe import gpu_name

    return gpu_name(device.index)


def _capturing() -> bool:
    """Whether launches go into a graph now: nothing can be timed then."""
    import cupy

    return cupy.cuda.get_current_stream().is_capturing()


def _elsewhere(launch, problem: Problem) -> Problem:
    """The same problem with results of its own: what is added to must not be added to twice."""
    finish = problem.finish

    def like(x):
        return None if x is None else launch.empty(x.shape, x.dtype)

    written = ("out", "preactivation", "column_sums", "row_sums")
    return replace(
        problem,
        finish=replace(finish, **{name: like(getattr(finish, name)) for name in written}),
    )


def _seconds(launch, problem: Problem, option: Option) -> float:
    """The median time of an option by the GPU's clock; infinite if it fails.

    What is timed are the noted launches (device/recipe.py), many in a row behind something that
    keeps the GPU busy while they are queued: a small product would else measure its launch code.
    """
    import cupy

    arrays = problem.arrays
    try:
        recorder = Recorder(launch, arrays)
        option.run(recorder, problem)
        recipe = recorder.recipe
        filler = cupy.empty(_HEAD_START, np.uint8)
        times = []
        for _ in range(_ROUNDS):
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            filler.fill(0)
            start.record()
            for _ in range(_REPEATS):
                recipe.run(launch, arrays) if recipe.repeatable else option.run(launch, problem)
            stop.record()
            stop.synchronize()
            times.append(cupy.cuda.get_elapsed_time(start, stop))
        return sorted(times)[_ROUNDS // 2]
    except (LaunchError, cupy.cuda.memory.OutOfMemoryError):
        return math.inf


def _path(gpu: str) -> Path:
    from gpunn.device.compiler import cache_folder

    plain = "".join(c if c.isalnum() else "-" for c in gpu)
    return cache_folder() / "tuned" / f"matmul-{plain}.json"


@functools.cache
def _file(gpu: str) -> dict[str, str]:
    """What is known of a GPU: digest of the kind of problem -> name of the option."""
    import json

    try:
        found = json.loads(_path(gpu).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(gpu: str, digest: str, name: str) -> None:
    """Keep a choice, in memory and on disk: the file is read again, so that other processes'
    choices stay, and replaced whole."""
    import json
    import tempfile

    _file(gpu)[digest] = name
    path = _path(gpu)
    with contextlib.suppress(OSError):  # a read-only cache folder costs time, not correctness
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(handle, "w") as file:
            json.dump({**known, **_file(gpu)}, file, indent=0, sort_keys=True)
        os.replace(temporary, path)
