"""The stages of the run on hardware that run in child processes, item by item.

``python -m gpunn.bench.stages parity --device cuda --items FILE --notes FILE`` is started by
`supervise`, never by hand. ``--tiny`` takes the smallest of everything, for dry runs on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

import gpunn.kernels
from gpunn.bench import supervise
from gpunn.bench.ceilings import Sizes, measure_ceilings
from gpunn.device import synchronize
from gpunn.device.device import Device, set_default_device
from gpunn.device.probe import import_cupy
from gpunn.errors import DeviceError
from gpunn.primitives import parity

STAGES: dict[str, Callable[[dict, Device, bool], dict]] = {}
TINY_SAMPLES = 3
MAX_FAILURES = 20
FEW_ELEMENTS = 1 << 15  # of all arrays of a sample for a debugging tool
TINY_SIZES = Sizes(1 << 20, {"float32": 64}, 3)


def stage(name: str) -> Callable[[Callable], Callable]:
    """Add a stage: function(item, device, tiny) -> result, a JSON object with "passed"."""

    def add(function: Callable) -> Callable:
        STAGES[name] = function
        return function

    return add


# ---- compile -------------------------------------------------------------------------------------


@stage("compile")
def compile_kernels(item: dict, device: Device, tiny: bool) -> dict:
    """Compile expressions of one source, or of a step, each as the launcher would ask for it."""
    from gpunn.bench.compile_stage import kernels_of
    from gpunn.device import compiler

    failures, spilling, registers = [], [], 0
    kernels = kernels_of(item)
    for source, expression in kernels:
        try:
            made = compiler.build(source, (expression,), item["arch"])
        except Exception as error:
            failures.append({"case": expression, "reason": str(error)[-3000:]})
            continue
        # Compiled alone, an expression leaves what others need unused; that is no fault.
        unused = "declared but never referenced"
        warnings = [w for w in made.warnings if "warning #" in w and unused not in w]
        if warnings:
            failures.append({"case": expression, "reason": "; ".join(warnings)[:1000]})
        for report in made.reports:
            registers = max(registers, report.registers)
            if report.spill_stores or report.spill_loads:
                spilling.append(report.expression)
    return {
        "passed": not failures,
        "checked": len(kernels),
        "failures": failures,
        "spilling": spilling,
        "registers": registers,
    }


# ---- parity --------------------------------------------------------------------------------------


@stage("parity")
def check_parity(item: dict, device: Device, tiny: bool) -> dict:
    """Every sample of one primitive by one implementation against the float64 reference."""
    made = gpunn.kernels.table()[item["primitive"]]
    implementation = item["implementation"]
    cases = list(parity.cases(made, implementation))
    if "few" in item:
        cases = spread_cases(cases, item["few"])
    elif tiny:
        cases = cases[:TINY_SAMPLES]
    failures, worst = [], 0.0
    for sample, dtype in cases:
        label = f"{sample.name}, {np.dtype(dtype).name}"
        try:
            result = parity.check(made, sample, dtype, implementation, device)
        except Exception:
            failures.append({"case": label, "reason": traceback.format_exc()[-3000:]})
            if poisoned(device):
                break
            continue
        if result.passed:
            worst = max(worst, result.error / result.bound if result.bound else 0.0)
        else:
            failures.append({"case": label, "reason": result.reason})
    return {
        "passed": not failures,
        "checked": len(cases),
        "failures": failures[:MAX_FAILURES],
        "failed": len(failures),
        "worst_error_over_bound": worst,
    }


def spread_cases(cases: list, few: int) -> list:
    """So many of the samples that a debugging tool is soon through with, from the smallest to the
    largest: they reach several blocks, and what is left over at an edge."""
    sizes = {}
    for at, (sample, _) in enumerate(cases):
        values = (*sample.args, *sample.kwargs.values())
        sizes[at] = sum(value.size for value in values if isinstance(value, np.ndarray))
    small = sorted((at for at in sizes if sizes[at] <= FEW_ELEMENTS), key=sizes.__getitem__)
    small = small or [min(sizes, key=sizes.__getitem__)]
    chosen = {small[round(i * (len(small) - 1) / max(few - 1, 1))] for i in range(few)}
    return [cases[at] for at in sorted(chosen)]


# ---- conformance: does the GPU do what the emulator does? ---------------------------------------


@stage("conformance")
def check_conformance(item: dict, device: Device, tiny: bool) -> dict:
    """One tiny kernel of a PTX wrapper: the same bits as NumPy, and so as the emulator."""
    from gpunn.emulator import conformance

    case = conformance.get(item["case"])
    on_gpu = device.type == "cuda"
    launch = conformance.cuda_launch(device) if on_gpu else conformance.emulator_launch(check=True)
    outcome = conformance.run(case, launch)
    failures = [] if outcome.passed else [{"case": case.expression, "reason": outcome.message}]
    return {
        "passed": outcome.passed,
        "checked": 1,
        "failures": failures,
        "covers": list(case.covers),
    }


@stage("matmul kernels")
def check_matmul_kernel(item: dict, device: Device, tiny: bool) -> dict:
    """One tensor-core kernel with one tile, on every layout and way out: the rule would not reach
    it on this GPU and these shapes."""
    from gpunn.device.cuda_launch import cuda_launcher
    from gpunn.device.emulator_launch import emulator_launcher
    from gpunn.primitives import matmul_parity

    on_gpu = device.type == "cuda"
    launch = cuda_launcher("matmul.cu", device) if on_gpu else emulator_launcher("matmul.cu")
    results, failures = 0, []
    which = (launch, item["mode"], item["dtype"], item["kernel"], str(device))
    large = matmul_parity.check_many_tiles(*which) if on_gpu else ()
    for case, reason in itertools.chain(matmul_parity.check_kernel(*which, few=tiny), large):
        results += 1
        if reason:
            failures.append({"case": case, "reason": reason[-3000:]})
            if poisoned(device):
                break
    return {
        "passed": results > 0 and not failures,
        "checked": results,
        "failures": failures[:MAX_FAILURES],
        "failed": len(failures),
    }


# ---- graphs and determinism ----------------------------------------------------------------------


@stage("graphs")
def check_graph(item: dict, device: Device, tiny: bool) -> dict:
    """A captured graph gives what the call gives, bit for bit; so does the call again."""
    from gpunn.bench import graph_stage

    return graph_stage.check(item, device)


# ---- training and large arrays -------------------------------------------------------------------


@stage("training parity")
def check_training(item: dict, device: Device, tiny: bool) -> dict:
    """The same training on the CPU and on the device: equal losses, and it learns."""
    from gpunn.bench import training

    steps = 5 if tiny else item["steps"]
    return training.check(item["job"], device, steps)


@stage("jobs")
def check_job(item: dict, device: Device, tiny: bool) -> dict:
    """A job of `gpunn train`, on the device and on the CPU."""
    from gpunn.bench import jobs_stage

    return jobs_stage.check_job(item, device)


@stage("compiled steps")
def check_compiled_step(item: dict, device: Device, tiny: bool) -> dict:
    """A small network: a compiled step does bit for bit what the step itself does."""
    from gpunn.bench import step_parity

    return step_parity.check(item["network"], item["precision"], device)


@stage("steps")
def time_steps(item: dict, device: Device, tiny: bool) -> dict:
    """Whole training steps of one job, ours beside PyTorch's."""
    from gpunn.bench import step_stages

    return step_stages.time_job(item, device, tiny)


@stage("step kernels")
def time_step_kernels(item: dict, device: Device, tiny: bool) -> dict:
    """Each kind of call in the step of a job, or what CUPTI tells of it."""
    from gpunn.bench import step_kernels

    return step_kernels.run_item(item, device, tiny)


@stage("choices")
def time_choices(item: dict, device: Device, tiny: bool) -> dict:
    """Every way to make one problem that a rule chooses among."""
    from gpunn.bench.choices import stage as choices

    return choices.time_one(item, device, tiny)


@stage("candidate kernels")
def find_candidate_kernels(item: dict, device: Device, tiny: bool) -> dict:
    """The kernels of a candidate that must be compiled."""
    from gpunn.bench import candidates

    return candidates.kernels_to_compile(item)


@stage("one rank")
def time_one_rank(item: dict, device: Device, tiny: bool) -> dict:
    """The training step of one job with a group of one rank, beside the same without."""
    from gpunn.bench import one_rank

    return one_rank.time_job(item, device, tiny)


@stage("large arrays")
def check_large(item: dict, device: Device, tiny: bool) -> dict:
    """Arrays of more than 2^31 elements."""
    from gpunn.bench import large as checks

    return checks.check(item["check"], device, 1 << 12 if tiny else (1 << 31) + 12345)


# ---- times ---------------------------------------------------------------------------------------


@stage("ceilings")
def time_ceilings(item: dict, device: Device, tiny: bool) -> dict:
    """Copy bandwidth and rates of the device."""
    return {
        "passed": True,
        "ceilings": measure_ceilings(device, TINY_SIZES if tiny else None).to_json(),
    }


@stage("clusters")
def count_clusters(item: dict, device: Device, tiny: bool) -> dict:
    """How many clusters of blocks run at one time, a fact of the machine."""
    from gpunn.bench.clusters import clusters

    found = clusters(device)
    return {
        "passed": True, "checked": len(found), "failures": [], "machine": {"clusters": found},
    }  # fmt: skip


@stage("launches")
def time_launches(item: dict, device: Device, tiny: bool) -> dict:
    """The host's time for a launch and for whole calls."""
    from gpunn.bench import launch

    rows, skipped = launch.measure(device, **({"samples": 2, "calls": 10} if tiny else {}))
    ours = [one for one in skipped if one.contestant == "gpunn"]
    if device.type != "cuda":  # tensor maps are made by the driver, which is not there
        ours = [one for one in ours if not one.reason.startswith(DeviceError.__name__)]
    failures = [{"case": one.case, "reason": one.reason} for one in ours]
    return {
        "passed": not failures,
        "checked": len(rows),
        "failures": failures,
        "launches": rows,
        "not_timed": [asdict(one) for one in skipped],
    }


@stage("products")
def time_product(item: dict, device: Device, tiny: bool) -> dict:
    """One matrix product of the sweep beside the peer's."""
    from gpunn.bench import products

    product = products.Product(**item["product"])
    row, skipped = products.measure(product, device, *((2, 1e-4) if tiny else (12, 5e-4)))
    ours = [one for one in skipped if one.contestant == "gpunn"]
    failures = [{"case": one.case, "reason": one.reason} for one in ours]
    return {
        "passed": not failures,
        "checked": 1,
        "failures": failures,
        "product": row,
        "not_timed": [asdict(one) for one in skipped],
    }


@stage("bench")
def time_case(item: dict, device: Device, tiny: bool) -> dict:
    """One case of the microbenchmarks."""
    from gpunn.bench import micro_stage

    return micro_stage.time_case(item, device, tiny)


# ---- the child -----------------------------------------------------------------------------------


def poisoned(device: Device) -> bool:
    """Whether the device no longer answers this process."""
    try:
        synchronize(device)
    except Exception:
        return True
    return False


def release(device: Device) -> None:
    """Give back the memory that CuPy and PyTorch keep, each for itself alone."""
    if device.type == "cuda":
        import_cupy().get_default_memory_pool().free_all_blocks()
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    """Run the items of a stage; POISONED if the device was lost on the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--device", required=True)
    parser.add_argument("--items", required=True)
    parser.add_argument("--notes", required=True)
    parser.add_argument("--tiny", action="store_true")
    parsed = parser.parse_args(arguments)
    with open(parsed.items) as file:
        items = json.load(file)
    device = Device(parsed.device)
    set_default_device(device)  # what only compiles makes its networks on the CPU, beside a GPU too
    with open(parsed.notes, "a", buffering=1) as notes:
        for item in items:
            notes.write(json.dumps({"begin": item["id"]}) + "\n")
            start = time.monotonic()
            try:
                result = STAGES[parsed.stage](item, device, parsed.tiny)
            except Exception:
                failure = {"case": item["id"], "reason": traceback.format_exc()[-3000:]}
                result = {"passed": False, "checked": 1, "failures": [failure]}
            result["seconds"] = round(time.monotonic() - start, 3)
            notes.write(json.dumps({"end": item["id"], "result": result}) + "\n")
            if not result["passed"] and poisoned(device):
                return supervise.POISONED
            with contextlib.suppress(Exception):  # what is wrong, the next item will tell
                release(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
