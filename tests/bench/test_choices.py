"""What the rules choose among: the problems, forcing one way, the fit, and the stage."""

import contextlib
import dataclasses
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpunn.bench import current, hardware, results
from gpunn.bench.choices import __main__ as command
from gpunn.bench.choices import fitting, listing, plans, problems, stage, tables
from gpunn.bench.choices import ways as ways_module
from gpunn.bench.choices.plans import Mlp, Recurrent
from gpunn.bench.choices.problems import from_json, to_json, ways_of
from gpunn.bench.choices.products import Convolution, Product
from gpunn.bench.choices.ways import Maker
from gpunn.bench.timing import CpuClock
from gpunn.device import Device, probe, set_default_device
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives import (
    convolution_plan,
    matmul_launch,
    matmul_plan,
    matmul_wgmma,
    mlp_launch,
    mlp_plan,
    recurrent_launch,
)
from gpunn.primitives.registry import TABLE
from gpunn.profiling.chips import find_chip

CPU = Device("cpu")
emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
SQUARE = Product(1024, 1024, 1024, "bfloat16")
NETWORK = Mlp((784, 256, 128, 10), 128)
LAYER = Recurrent("lstm", 64, 64, 512, "bfloat16", "backward")


# ---- which problems, which ways ------------------------------------------------------------------


@pytest.fixture(scope="module")
def posed():
    return listing.all_problems()


@pytest.fixture(scope="module")
def with_ways(posed):
    """Problems of every source and kind with their ways: of the many products each fifth."""
    products = [one for one in posed if one.problem.kind == "product"]
    others = [one for one in posed if one.problem.kind != "product"]
    return [(one.problem, *ways_of(one.problem)) for one in (*others, *products[::5])]


def nothing_found():
    """Results of a run on an H200 that has found nothing."""
    machine = {"gpu": "NVIDIA H200", "arch": "sm_90a"}
    environment = {"machine": machine, "versions": {}, "commit": None, "clean": None,
                   "date": "2026-11-26T00:00:00Z", "command": []}  # fmt: skip
    names = ("matmul", "convolution_forward", "mlp_train", "recurrent_backward")
    return results.Results(environment, {name: {"cuda": f"of {name}"} for name in names})


def test_the_problems_of_whole_steps_are_there(posed):
    by_key = {one.problem.key: one for one in posed}
    assert len(by_key) == len(posed) > 150
    assert [one.weight for one in posed] == sorted((o.weight for o in posed), reverse=True)
    # Of GPT-2's blocks each of 12 has it, the head only one; shapes are the model's own.
    assert by_key["8192x3072x768 NT bfloat16 gelu_tanh bias keep"].where == {"gpt-2-124M": 12}
    assert by_key["8192x50257x768 NT bfloat16"].where == {"gpt-2-124M": 1}
    assert by_key["8192x768x3072 NT float32"].where == {"sweep": 1}
    assert "8192x3072x768 NT float32 gelu_tanh bias keep" in by_key and SQUARE.key in by_key
    assert "8192x50257x768 NT float32" not in by_key  # too large for the other dtype
    assert "cnn-airbench" in by_key["weight 1024x7x7x256 3x3 to 256 bfloat16"].where
    assert by_key["input 128x32x32x64 3x3 to 64 bfloat16"].where == {"resnet18-128": 4}
    assert by_key[dataclasses.replace(LAYER, way="forward").key].where == {"lstm-lm-512": 2}
    assert NETWORK.key in by_key and "mlp-64-128-128-10 1024" in by_key
    kinds = {one.problem.kind for one in posed}
    assert kinds == {"product", "convolution", "mlp", "recurrent"}


@emulated
def test_beside_a_gpu_steps_are_noted_on_the_cpu(posed):
    set_default_device("emulator")
    try:
        found = {one.problem for one in listing.of_step("lstm-32-128")}
    finally:
        set_default_device(None)
    assert found == {one.problem for one in posed if "lstm-32-128" in " ".join(one.where)}


def test_every_problem_has_ways_with_names_of_their_own(with_ways):
    alone = set()
    for problem, ways, _ in with_ways:
        names = [way.name for way in ways]
        assert len(set(names)) == len(names) and all(way.estimate > 0 for way in ways)
        alone |= {problem.key} if len(ways) == 1 else set()
        assert from_json(json.loads(json.dumps(to_json(problem)))) == problem
    # Three channels are moved one by one, by one kernel; 1024 units in float32 fit no chip.
    assert alone == {
        "output 1024x32x32x3 2x2 to 24 bfloat16 relu bias",
        "output 128x32x32x3 3x3 to 64 bfloat16",
        "lstm 64 steps of 16x1024 float32 backward",
    }


def test_the_least_estimate_is_what_the_rule_chooses(with_ways):
    for problem, ways, inputs in with_ways:
        launch = RecordingLauncher(problem.source)
        chosen = min(ways, key=lambda way: way.estimate)
        if problem.kind == "product":
            with stage.precision(problem.dtype):
                assert matmul_plan.choose(launch, inputs).name == chosen.name
        elif problem.kind == "convolution":
            options = convolution_plan.options(inputs, launch)
            assert min(options, key=lambda option: option.seconds).name == chosen.name
        elif problem.kind == "mlp":
            case = (inputs[-1].network, problem.batch, False, True, 132, launch.shared_limit)
            plan = mlp_plan.choose(*case)
            assert chosen.name.startswith(f"{plan.blocks} blocks of {plan.members}")
            assert chosen.estimate == pytest.approx(plan.clocks / plans.CLOCK)
            assert sum(chosen.parts.values()) == pytest.approx(chosen.estimate)
            assert (chosen.run.args[2].table == plan.table).all()
        else:
            shape = (problem.steps, problem.batch, problem.hidden)
            itemsize, back = {"b": 2, "f": 4}[problem.dtype[0]], problem.way == "backward"
            plan = recurrent_launch.choose(launch, shape, itemsize, problem.mode, back)
            assert plans._plan_name(plan) == chosen.name


def test_each_tile_comes_with_other_cuts_of_k():
    ways, _ = ways_of(Product(768, 768, 8192, "bfloat16", "TN"))
    cuts = {way.name.rpartition(" k")[2] for way in ways if way.name.startswith("wgmma 128x192")}
    assert {"2", "4", "8"} <= cuts
    # They are those of the rule's own functions, which give the best one again afterwards.
    again, _ = ways_of(Product(768, 768, 8192, "bfloat16", "TN"))
    assert [way.name for way in again] == [way.name for way in ways]


# ---- forcing -------------------------------------------------------------------------------------


def unforced(problem, launch, inputs):
    """The same as the rules do it, through the launch code."""
    if problem.kind == "product":
        matmul_launch.multiply(launch, inputs.a, inputs.b, inputs.finish)
    elif problem.kind == "convolution":
        convolution_plan._launch(launch, inputs)
    else:
        TABLE[problem.primitive].run_cuda(launch, inputs)


def result(problem, inputs):
    if problem.kind in ("product", "convolution"):
        return inputs.finish.out
    return inputs[3] if problem.kind == "mlp" else inputs[-1].output


@emulated
@pytest.mark.parametrize(
    "problem, names",
    [
        (Product(24, 16, 40, "float32", "NT", words=("relu", "bias")),
         ("simt 64x64 k1", "simt 32x32 k1")),
        (Convolution("OUTPUT", (1, 4, 4, (1, 4, 4), (1, 3, 3), (1, 4, 4), (1, 1, 1), (0, 1, 1),
                                (0, 1, 1), (1, 1, 1), 1), "float32"),
         ("simt packed k1", "simt packed k2")),
        (Mlp((8, 8, 4), 16), ("1 blocks of 1 resident", "2 blocks of 1")),
        (Recurrent("lstm", 2, 3, 8, "float32", "forward"), ("block 1 of 8 x1 s1", "steps")),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)  # fmt: skip
def test_each_way_gives_what_the_rule_gives(problem, names, monkeypatch):
    from gpunn.device.emulator_launch import emulator_launcher

    monkeypatch.setattr(plans, "MLP_STEPS", 2)
    before = (matmul_launch.choose, mlp_launch.choose, recurrent_launch.choose, mlp_plan.estimate)
    launch, wanted = emulator_launcher(problem.source), problem.inputs(Maker(CPU))
    unforced(problem, launch, wanted)
    ways = {way.name: way for way in problem.options(wanted, launch)}
    for name in names:
        inputs = problem.inputs(Maker(CPU))
        ways[name].run(launch, inputs)
        found = result(problem, inputs)
        np.testing.assert_allclose(found, result(problem, wanted), rtol=1e-5, atol=1e-6)
        assert np.abs(found).max() > 0.01
    after = (matmul_launch.choose, mlp_launch.choose, recurrent_launch.choose, mlp_plan.estimate)
    assert after == before


@pytest.mark.parametrize("problem", [NETWORK, LAYER], ids=lambda one: one.kind)
def test_each_plan_is_launched_as_its_name_says(problem):
    class Noting(RecordingLauncher):
        def __call__(self, expression, grid, block, args, shared=0):
            seen.append((expression, *grid))

    seen, launch = [], Noting(problem.source)
    ways, inputs = ways_of(problem, launch)
    for way in ways:
        seen.clear()
        way.run(launch, inputs)
        numbers = list(map(int, re.findall(r"\d+", way.name)))
        if problem.kind == "mlp":
            resident = str(way.name.endswith("resident")).lower()
            assert seen[-1] == (f"mlp_train<{resident}>", numbers[0])
        elif way.name == "steps":
            assert sum("cell_backward" in name for name, *_ in seen) == problem.steps + 1
        else:
            members, _, teams, _ = numbers
            kernel = "grid" if way.name.startswith("grid") else "sequence"
            name, blocks = seen[-1]
            assert name.startswith(f"recurrent_{kernel}_backward<") and blocks == members * teams


def test_sets_of_inputs_are_alike_but_not_the_same():
    one, other = SQUARE.inputs(Maker(CPU)), SQUARE.inputs(Maker(CPU))
    assert (one.a == other.a).all() and not np.shares_memory(one.a, other.a)
    assert (one.b == other.b).all() and not (one.a == one.b).all()
    block = np.arange(5.0)
    for size in (3, 5, 23):
        target = np.full(size, -1.0)
        ways_module._repeat(target, block)
        assert (target == np.resize(block, size)).all()


# ---- the fit -------------------------------------------------------------------------------------

TRUE = {"wgmma native": 1.5, "mma native": 0.75, "convolution wgmma": 2.0, "convolution mma": 2.0}


@pytest.fixture(scope="module")
def measured():
    """Choices whose times are the estimates times known factors."""
    conv = Convolution("OUTPUT", (128, 64, 64, (1, 32, 32), (1, 3, 3), (1, 32, 32), (1, 1, 1),
                                  (0, 1, 1), (0, 1, 1), (1, 1, 1), 1), "bfloat16")  # fmt: skip
    made = []
    large = [Product(4096, 4096, K, "bfloat16") for K in (4096, 2048, 3072)]
    for problem in (SQUARE, *large, conv, NETWORK, LAYER):
        ways, _ = ways_of(problem)
        one = problems.described(problem, ways, stage.left_out(ways))
        one |= {"where": {"a step": 2}, "problem": to_json(problem)}
        for option in one["options"]:
            if "reason" in option:
                continue
            factor = TRUE.get(fitting.family(problem.kind, option["name"]), 1.0)
            option["median"] = factor * option["estimate"]
            if problem.kind == "mlp":
                parts = option["parts"]
                option["median"] = 2 * parts["rows"] + 3 * parts["weights"] + parts["meetings"]
            option["quartiles"] = [0.99 * option["median"], 1.01 * option["median"]]
        made.append(one | problems.verdict(one))
    found = nothing_found()
    found.choices = made
    return found


def test_known_factors_are_found(measured):
    factors = {one.name: one for one in fitting.factors(measured.choices)}
    for name, factor in TRUE.items():
        assert factors[name].mean == pytest.approx(factor)
        assert factors[name].spread == pytest.approx(1.0)
        sizes = factors[name].sizes.values()
        assert sum(count for _, count in sizes) == factors[name].count
        assert all(mean == pytest.approx(factor) for mean, _ in sizes)
    found = {one.place: one for one in fitting.suggestions(measured.choices, "sm_90a")}
    mma = found['matmul_option._MEASURED["mma"][90]']
    assert mma.now == 1.7 and 0.75 * 1.7 < mma.fitted < 2.0 * 1.7
    tile = found["matmul_wgmma.MENU 128x256 share2 rate"]
    assert tile.now == 0.80 and tile.fitted == pytest.approx(0.80 / 1.5)
    for part, factor in (("rows", 2), ("weights", 3), ("meetings", 1)):
        one = found[f"mlp_plan._MEASURED, {part}"]
        assert one.fitted == pytest.approx(factor * one.now, rel=1e-6)


def test_fitted_factors_end_the_regret(measured):
    square = measured.choices[0]
    assert square["chosen"].startswith("wgmma") and square["regret"] >= 1.0
    found = fitting.regrets(measured.choices[:5])
    # The estimates of mma are half of what they should be beside those of wgmma.
    assert found["as the rules are"] >= found["with a factor for each kernel"]
    assert found["with a factor for each kernel"] == pytest.approx(1.0)
    assert found["with a factor for each tile"] == pytest.approx(1.0)


def test_noise_does_not_hide_the_factors(measured):
    rng = np.random.default_rng(1)
    noisy = json.loads(json.dumps(measured.choices))
    for _, option in fitting.timed(noisy):
        option["median"] *= float(np.exp(0.05 * rng.standard_normal()))
    for one in fitting.factors(noisy):
        if one.count >= 10 and one.name in TRUE:
            # Four standard errors of a mean of logarithms.
            assert one.mean == pytest.approx(TRUE[one.name], rel=4 * 0.05 / one.count**0.5)
            assert one.spread == pytest.approx(1.05, abs=0.03)
    # The meetings are a small part of a network's time: noise of 5 % moves their factor by 40 %.
    calm = json.loads(json.dumps(measured.choices))
    for _, option in fitting.timed(calm):
        option["median"] *= float(np.exp(0.005 * rng.standard_normal()))
    parts = [one for one in fitting.suggestions(calm, "sm_90a") if "mlp_plan" in one.place]
    assert [one.fitted / one.now for one in parts] == pytest.approx([2, 3, 1], rel=0.2)


def test_a_changed_rule_is_judged_by_the_same_times(measured, monkeypatch):
    square, chip = measured.choices[0], find_chip("h200")
    again = problems.estimated_anew(square, chip)
    assert again["options"] == square["options"] and again["regret"] == square["regret"]
    menu = tuple(
        dataclasses.replace(one, rate=one.rate / 10) if one.name in square["chosen"] else one
        for one in matmul_wgmma.MENU
    )
    monkeypatch.setattr(matmul_wgmma, "MENU", menu)
    other = problems.estimated_anew(square, chip)
    assert other["chosen"] != square["chosen"] and other["fastest"] == square["fastest"]


def test_what_is_printed(measured, tmp_path, capsys):
    path = tmp_path / "result.json"
    measured.write(path)
    assert results.read(path).choices == json.loads(json.dumps(measured.choices))
    assert command.main([str(path), "--kind", "product"]) == 0
    said = capsys.readouterr().out
    assert SQUARE.key in said and "wgmma native" in said and "1.50" in said
    assert NETWORK.key not in said
    lines = said.split("\n\n")[1].splitlines()
    assert len({line.index("a step x2") for line in lines[2:]}) == 1  # the last column is aligned
    assert command.main([str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert "there are no choices" in tables.text([], "sm_90a")
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "examples:" in capsys.readouterr().out


def test_the_section_of_the_page(measured):
    assert tables.markdown([], "") == ""
    text = tables.markdown(measured.choices, "From `a` (7).")
    assert text.startswith("### What the rules chose\n")
    assert NETWORK.key in text and "| product |" in text
    own, best = (
        sum(2 * next(o["median"] for o in one["options"] if o["name"] == one[which])
            for one in measured.choices)
        for which in ("chosen", "fastest")
    )  # fmt: skip
    assert f"| {own / best:.3f} |" in next(x for x in text.splitlines() if x.startswith("| a step"))
    assert "From `a` (7)." in text
    files = [(Path("a.json"), measured)]
    assert [one for one, _ in current.choices(files, measured.sources)] == measured.choices
    changed = measured.sources | {"matmul": {"cuda": "another"}}
    kinds = {one["kind"] for one, _ in current.choices(files, changed)}
    assert kinds == {"convolution", "mlp", "recurrent"}


def test_without_a_file_the_ways_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(listing, "all_problems", listing.tiny_problems)
    assert command.main([]) == 0
    said = capsys.readouterr().out
    for one in listing.tiny_problems():
        assert one.problem.key in said
    assert "chosen" in said and "cluster" in said and "x least" in said
    assert command.main(["--kind", "mlp", "--brief"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


# ---- the stage -----------------------------------------------------------------------------------


def test_ways_without_a_kernel_are_left_out_and_named(monkeypatch):
    problem = listing.tiny_problems()[0].problem
    needed = stage.kernels_of(problem, CPU)
    name, ((source, expression), *_) = next(iter(needed.items()))
    assert source == "matmul.cu" and expression.startswith("matmul<float")
    item = {
        "id": "x",
        "problem": to_json(problem),
        "skip": {name: "as asked"},
        "where": {"here": 1},
    }
    answer = stage.time_one(item, CPU, True)
    (option,) = (o for o in answer["choice"]["options"] if o["name"] == name)
    assert answer["passed"] and option["reason"] == "as asked" and "median" not in option

    def fails(self, inputs, launch):
        def run(launch, inputs):
            raise RuntimeError("on purpose")

        first, *others = options(self, inputs, launch)
        return [dataclasses.replace(first, run=run), *others]

    options = Product.options
    monkeypatch.setattr(Product, "options", fails)
    answer = stage.time_one(item | {"skip": {}}, CPU, True)
    assert not answer["passed"]
    assert answer["failures"][0]["reason"] == "RuntimeError: on purpose"
    reason = [o["reason"] for o in answer["choice"]["options"] if "reason" in o]
    assert "RuntimeError: on purpose" in reason


def test_on_a_gpu_sets_of_inputs_take_turns_in_graphs(monkeypatch):
    """With a stand-in for the GPU: everything but the launches."""

    class Gpu:
        type, index = "cuda", 0

    def captured(contestant, clock, calls):
        if contestant.name == "simt 32x32 k1":
            raise RuntimeError("cannot be captured")
        graphs.append((contestant.name, calls))
        return dataclasses.replace(contestant, calls=calls)

    graphs, made = [], []
    monkeypatch.setattr(stage, "captured", captured)
    monkeypatch.setattr(stage, "clock_for", lambda device: contextlib.nullcontext(CpuClock()))
    monkeypatch.setattr(stage, "last_level_cache", lambda device: 1 << 13)
    monkeypatch.setattr(stage, "room_for_copies", lambda device: 1e9)
    monkeypatch.setattr(stage, "launcher_of", lambda one, device: RecordingLauncher(one.source))
    here = SimpleNamespace(
        to_device=lambda host, device: host, empty=lambda shape, dtype, device: made.append(1)
        or np.empty(shape, dtype),
    )  # fmt: skip
    monkeypatch.setattr(ways_module, "arrays", here)
    problem = listing.tiny_problems()[0].problem
    found, failed = stage.measure(problem, Gpu(), {}, 2, 1e-5)
    assert failed == {"simt 32x32 k1": "RuntimeError: cannot be captured"}
    assert (found["mode"], found["cache"]) == ("graph", "cold")
    arrays_of_a_set = 4  # the operands, the bias and the result
    assert len(made) == arrays_of_a_set * stage.copies_for(problem.bytes, 1 << 13, 1e9) == 12
    calls = dict(graphs)
    assert calls["simt 64x64 k1"] == stage.GRAPH_CALLS > max(calls.values()) - 1
    assert min(calls.values()) >= 3  # each set takes its turn
    timed = {one["name"] for one in found["options"] if "median" in one}
    assert timed == {name for name, _ in graphs} == {"simt 64x64 k1", "simt 128x128 k5"}


def test_what_is_not_compiled_in_time_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "device_properties", lambda index: {"arch": "sm_90a"})
    found = nothing_found()
    run = hardware.Run(CPU, found, tmp_path / "x.json", True, time.monotonic() + 60, print)
    kernels = [("matmul.cu", f"matmul<{number}>") for number in range(6)]
    missing = stage.compile_all(run, kernels, 0)
    assert set(missing) == set(kernels)
    assert set(missing.values()) == {"its kernel: no time was left"}
    assert set(run.left_out) == {"for choices: matmul.cu 0", "for choices: matmul.cu 1"}
