"""Result files, comparisons, tables, the roofline and the generated documentation."""

import json

import pytest

from gpunn.bench import compare, machine, report, results, tables
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.measure import NotTimed, Row
from gpunn.device import Device

CEILINGS = Ceilings("cuda:0", 4e12, {"float32": 5e13}, {"copy": "a copy", "float32": "a product"})


def row(seconds=1e-3, **changes):
    values = dict(
        primitive="softmax_forward", shape=(4096, 1024), dtype="float32", device="cuda:0",
        implementation="cuda", ours=True, mode="stream", cache="cold",
        samples=tuple(seconds * f for f in (0.99, 1.0, 1.01)), inner=7, flops=2e7, bytes=3.2e9,
        floor=8e-4, bound="memory", peers={"torch": 1.25},
    )  # fmt: skip
    return Row(**{**values, **changes})


@pytest.fixture
def found():
    made = results.new(Device("cpu"))
    made.environment["machine"]["gpu"] = "NVIDIA H200"
    made.environment.update(date="2026-11-23T10:00:00Z", commit="0123456789abcdef", clean=True)
    made.ceilings.append(CEILINGS)
    made.rows.append(row())
    made.not_timed.append(NotTimed("matmul 2x2x2 float32", "cupy", "no such thing"))
    made.tests.append({"stage": "parity", "item": "a", "passed": True, "checked": 12})
    made.training += [
        training_row("gpunn compiled", 1e-4, target=">= 1.1 x torch and torch fused", reached=True),
        training_row("torch", 2e-4, target="", reached=None),
    ]
    made.launches += [
        launch_row("launch", "gpunn", 2e-6, arguments=1),
        launch_row("launch", "cuda.core", 2.5e-6, arguments=1),
        launch_row("call", "matmul", 9e-6, part="whole"),
    ]
    return made


def training_row(contestant, seconds, **more):
    return {
        "job": "lstm-32-128", "batch": 64, "device": "cuda:0", "contestant": contestant,
        "threads": 1, "flops": 1.0, "precision": "fp32", "median": seconds,
        "quartiles": [seconds, seconds], "samples": [seconds] * 3, "inner": 1,
        "losses": [2.3, 2.2], "curve": [2.3, 2.25, 2.2], "over_ours": seconds / 1.2e-4,
        "primitives": ["matmul"] if contestant.startswith("gpunn") else [], **more,
    }  # fmt: skip


def launch_row(kind, contestant, seconds, **more):
    return {
        "kind": kind, "contestant": contestant, **more, "driver": True, "median": seconds,
        "quartiles": [seconds, seconds], "samples": [seconds] * 3, "inner": 200,
    }  # fmt: skip


def test_round_trip(tmp_path, found):
    path = tmp_path / "a.json"
    found.write(path)
    again = results.read(path)
    assert again == found
    raw = json.loads(path.read_text())
    assert (raw["format"], raw["version"], raw["dry_run"]) == ("gpunn-benchmark", 1, False)
    assert raw["rows"][0]["median"] == 1e-3
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]  # nothing half written is left


def test_the_documented_fields_are_those_of_the_file(found):
    text = (machine.checkout() / "benchmarks" / "results" / "README.md").read_text("utf-8")
    written = found.to_json()
    parts = [written, written["rows"][0], written["training"][0], *written["launches"]]
    for name in [name for part in parts for name in part]:
        assert f"`{name}`" in text, f"{name} is not described"


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "Expecting property name"),
        ("[]", "not a benchmark result of gpunn"),
        ('{"format": "other"}', "not a benchmark result of gpunn"),
        ('{"format": "gpunn-benchmark", "version": 9}', "reads up to 1: update it"),
        ('{"format": "gpunn-benchmark", "version": 1}', "has no 'machine'"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(results.ResultError, match=message) as caught:
        results.read(path)
    assert "odd.json" in str(caught.value)


def test_names_of_files(found):
    assert results.file_name(found) == "2026-11-23-0123456.json"
    assert results.folder_name("NVIDIA H200") == "nvidia-h200"


def test_environment_names_machine_and_versions():
    made = results.new(Device("cpu"))
    assert made.environment["machine"]["cores"] >= 1
    assert made.environment["versions"]["numpy"]
    assert made.environment["date"].endswith("Z")
    assert made.sources["softmax_forward"]["cuda"] != made.sources["softmax_forward"]["numba"]


# ---- digests -------------------------------------------------------------------------------------


def test_comments_do_not_change_a_digest_and_code_does():
    plain = "def f(x):\n    return x + 1\n"
    spoken = '"""A module."""\n\n\ndef f(x):\n    """A function."""\n    return x + 1  # why\n'
    assert machine._python_digest(plain) == machine._python_digest(spoken)
    assert machine._python_digest(plain) != machine._python_digest(plain.replace("1", "2"))


@pytest.mark.parametrize("string", [
    "'#1'", r"""'\'#1'""", r'''"a\\" "#1"''', "f'{1}#1'", '"""a"#1\n#1"""', r"r'\\#1'", "'' '#1'",
    "'''\n' #1'''", '"\'#1"', r'''"""\"""#1"""''',
])  # fmt: skip
def test_no_comment_begins_in_a_string(string):
    code = (
        f'class A:\n    def f(self):  # WHY\n        return ({string},  # "that WHY\n            2)'
    )
    compile(code, "code", "exec")
    digests = {machine._python_digest(code.replace("WHY", word)) for word in ("a", "'", '"""')}
    assert digests == {machine._python_digest(code.replace("# WHY", "").replace('# "that WHY', ""))}
    assert machine._python_digest(code.replace("#1", "#2")) not in digests


def test_a_cuda_digest_follows_includes(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.sources, "kernels_folder", lambda: tmp_path)
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "a.cu").write_text('#include "b.cuh" // c\nint x; /* two\nlines */ int y;\n')
    (folder / "b.cuh").write_text("int z;\n")
    first = machine._cuda_digest("a.cu")
    machine._cuda_digest.cache_clear()
    (folder / "a.cu").write_text('#include "b.cuh"\n\nint x;  int y;\n')
    assert machine._cuda_digest("a.cu") == first
    machine._cuda_digest.cache_clear()
    (folder / "b.cuh").write_text("long z;\n")
    assert machine._cuda_digest("a.cu") != first
    machine._cuda_digest.cache_clear()


# ---- comparing -----------------------------------------------------------------------------------


def test_slower_needs_threshold_and_spread():
    def verdict(old, new):
        return compare.compare([old], [new], 0.05)[0].verdict

    assert verdict(row(1.0), row(1.2)) == "slower"
    assert verdict(row(1.2), row(1.0)) == "faster"
    assert verdict(row(1.0), row(1.04)) == ""
    wide = row(samples=(0.5, 1.0, 1.5))
    assert verdict(wide, row(1.2)) == ""  # within what the old run's samples spread over


def test_only_our_common_rows_are_compared_worst_first():
    old = [row(1.0), row(1.0, dtype="float16"), row(1.0, implementation="torch", ours=False)]
    new = [row(1.1), row(2.0, dtype="float16"), row(9.0, implementation="torch", ours=False),
           row(1.0, shape=(7,))]  # fmt: skip
    found = compare.compare(old, new)
    assert [(c.name[2], round(c.ratio, 6)) for c in found] == [("float16", 2.0), ("float32", 1.1)]


def test_thresholds():
    assert compare.parse_threshold("5%") == 0.05
    assert compare.parse_threshold("0.1") == 0.1
    for bad in ("five", "-1%", "%", "5000%"):
        with pytest.raises(ValueError, match="write for example 5% or 0.05"):
            compare.parse_threshold(bad)


def test_another_machine_is_noted(found):
    assert compare.same_machine(found, found) == ""
    other = results.new(Device("cpu"))
    assert "another machine (gpu: NVIDIA H200, now None)" in compare.same_machine(found, other)


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds, text",
    [(8.5e-7, "850 ns"), (1.234e-6, "1.23 us"), (0.04567, "45.7 ms"), (12.0, "12.0 s"),
     (0.0009999, "1.00 ms"), (1234.0, "1234 s")],
)  # fmt: skip
def test_times_as_text(seconds, text):
    assert tables.seconds_text(seconds) == text


def test_significant_digits():
    assert tables.significant(0) == "0"
    assert tables.significant(0.012345) == "0.0123"
    assert tables.significant(1234.5) == "1234"


def test_the_table_is_aligned_and_holds_rates_floor_and_ratio():
    peer = row(1.25e-3, implementation="torch", ours=False, peers={})
    lines = tables.rows_table([row(), peer]).splitlines()
    assert len(lines) == 4
    header, rule, first, second = lines
    column = header.index("primitive")
    assert [line[column : column + 15] for line in (first, second)] == ["softmax_forward"] * 2
    end = rule.index("  ", header.index("GB/s"))
    assert first[:end].endswith("3200") and second[:end].endswith("2560")
    assert "80%" in first and "1.25x" in first and "1.25x" not in second
    assert "64%" in second


def test_means_and_worst_over_shapes():
    slow = row(4e-3, shape=(8, 8), peers={"torch": 0.8})  # 25% and 20% of the floor
    graph = row(1e-3, shape=(8, 8), mode="graph", peers={"torch": 2.0})
    other = row(1e-3 / 0.16 * 1.0, shape=(4, 4), peers={"torch": 0.5, "cupy": 3.0})
    peer = row(1e-6, shape=(8, 8), implementation="torch", ours=False, peers={})
    headers, ((*cells,),) = tables.over_shapes([slow, graph, other, peer])
    found = dict(zip(headers, cells, strict=True))
    # Of slow and graph, which are the same case, the faster one counts.
    first, second = graph.percent_of_floor, other.percent_of_floor
    assert found["shapes"] == "2" and found["at"] == "4x4"
    assert found["of floor"] == f"{(first * second) ** 0.5:.0f}%"
    assert found["worst"] == f"{second:.0f}%"
    assert found["vs torch"] == "1.00 (0.50)" and found["vs cupy"] == "3.00 (3.00)"


def test_equal_reasons_are_told_once():
    text = tables.not_timed_text([NotTimed("a", "torch", "why"), NotTimed("b", "torch", "why")])
    assert text == "not timed:\n  torch, a and 1 more: why"
    assert tables.not_timed_text([]) == ""


# ---- the picture ---------------------------------------------------------------------------------


def test_roofline_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from gpunn.bench import roofline

    rows = [row(), row(2e-3, dtype="float16"), row(5e-3, implementation="torch", ours=False)]
    path = tmp_path / "roof.png"
    assert roofline.plot([*rows, row(flops=0)], CEILINGS, path) == 3
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    with pytest.raises(ValueError, match="no measured row has FLOPs"):
        roofline.plot([row(flops=0)], CEILINGS, path)


# ---- the documentation ---------------------------------------------------------------------------

DIGESTS = {"softmax_forward": {"cuda": "new", "numba": "n"}, "matmul": {"cuda": "m"}}


def write(folder, found, name, **changes):
    found.environment.update(changes)
    (folder / "nvidia-h200").mkdir(parents=True, exist_ok=True)
    found.write(folder / "nvidia-h200" / name)


def test_without_files_everything_is_not_yet_run(tmp_path):
    text = report.performance(tmp_path, DIGESTS)
    assert "Not yet run on hardware: `softmax_forward`, `matmul`." in text
    title = "### What a launch costs the host"
    assert f"{title}\n\nNot yet run on hardware (`gpunn bench launch`)." in text
    assert "not yet run on hardware" in report.readme_block(tmp_path, DIGESTS).lower()


def test_only_current_sources_are_shown(tmp_path, found):
    folder = tmp_path / "benchmarks" / "results"
    found.sources = {"softmax_forward": {"cuda": "old"}, "matmul": {"cuda": "m"}}
    write(folder, found, "a.json")
    text = report.performance(folder, DIGESTS)
    assert "Not yet run on hardware since they last changed: `softmax_forward`, `matmul`." in text
    goal = "| lstm-32-128 | 64 | gpunn compiled | >= 1.1 x torch and torch fused |"
    assert f"{goal} reached | 2.00 x torch |" in text
    assert "| lstm-32-128 | 64 | fp32 | torch |  | 200 us | 1.67 |" in text
    found.sources = {"softmax_forward": {"cuda": "new"}}
    write(folder, found, "b.json", date="2026-11-24T00:00:00Z")
    text = report.performance(folder, DIGESTS)
    assert "| `softmax_forward` | 4096x1024 | float32 | cuda | stream | cold | b | 1.00 ms" in text
    assert "80% | 1.25 |" in text
    assert "since they last changed: `matmul`." in text
    assert "The newest run: 2026-11-24, 0123456, driver" in text
    assert "Checks on the device: 12, all passed." in text
    assert "copy 4,000 GB/s; products float32 50.0 TFLOP/s" in text
    assert f"{goal} reached |" in text and "From `a` (1)." in text  # b's matmul is another one
    assert "| cuda.core | 2.50 ± 0% |  |  |" in text
    assert "| matmul |  |  |  | 9.00 ± 0% |" in text
    block = report.readme_block(folder, DIGESTS)
    assert "| `softmax_forward` | 4096x1024 | 1.00 ms | 80% | 1.25 (torch) |" in block
    assert "Not yet run on hardware: 1 more." in block
    (folder / "nvidia-h200" / "a.json").unlink()
    assert f"{goal}  | not yet run on hardware |" in report.performance(folder, DIGESTS)


def test_what_was_checked_but_not_timed_is_told_apart(tmp_path, found):
    folder = tmp_path / "benchmarks" / "results"
    found.sources = {"softmax_forward": {"cuda": "old"}, "matmul": {"cuda": "m"}}
    passed = {"stage": "parity", "passed": True, "checked": 3, "failures": []}
    found.tests += [passed | {"item": "matmul cuda"}, passed | {"item": "softmax_forward cuda"}]
    write(folder, found, "a.json")
    text = report.performance(folder, DIGESTS)
    assert "Right on the device, but not timed since they last changed: `matmul`." in text
    assert "Not yet run on hardware since they last changed: `softmax_forward`." in text
    block = report.readme_block(folder, DIGESTS)
    assert "Right on the device, but not timed yet: 1 more." in block
    assert "| lstm-32-128 | 64 | fp32 | gpunn compiled |" in block and "| 2.0 (torch) |" in block


def test_an_older_file_still_covers_what_has_not_changed(tmp_path, found):
    folder = tmp_path / "benchmarks" / "results"
    found.sources = {"softmax_forward": {"cuda": "new"}}
    write(folder, found, "a.json")
    found.rows = []
    write(folder, found, "b.json", date="2026-11-25T00:00:00Z")
    assert "| cold | a | 1.00 ms |" in report.performance(folder, DIGESTS)


def test_launches_that_called_no_driver_are_not_shown(tmp_path, found):
    for row in found.launches:
        row["driver"] = False
    write(tmp_path / "results", found, "a.json")
    assert "Not yet run on hardware (`gpunn bench launch`)." in report.performance(
        tmp_path / "results", DIGESTS
    )


def test_files_from_before_launches_were_measured_are_read(tmp_path, found):
    old = found.to_json()
    del old["launches"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert results.read(path).launches == []


def test_dry_runs_and_cpu_files_are_not_shown(tmp_path, found):
    found.dry_run = True
    write(tmp_path, found, "a.json")
    assert report.result_files(tmp_path) == []


def test_marks_in_the_readme_are_filled():
    text = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n"
    new = report.filled(text, "new\n")
    assert new == f"above\n{report.BEGIN}\nnew\n{report.END}\nbelow\n"
    assert report.filled(new, "new\n") == new
    assert report.filled("no marks", "new") == "no marks"


def test_committed_documentation_is_what_the_files_say():
    for path, text in report.targets(machine.checkout()).items():
        assert path.is_file(), f"{path} is missing: run make docs-tables"
        assert path.read_text("utf-8") == text, f"{path} is out of date: run make docs-tables"
