"""Every planted fault must be reported in checked mode, at a line that is to blame for it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import planted_bugs
from planted_bugs import CASES, FAULTS, MODES, TABLE, launch

from gpunn.emulator import EmulatorError

SEEDS = (0, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_without_a_fault_the_kernel_is_clean_and_right(name, mode):
    for seed in SEEDS:
        assert launch(CASES[name], **MODES[mode], seed=seed)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_is_reported_where_it_is(fault, seed):
    if not fault.errors:
        assert not launch(fault.case, fault.name, check=True, schedule="random", seed=seed)
        return
    with pytest.raises(EmulatorError) as caught:
        launch(fault.case, fault.name, check=True, schedule="random", seed=seed)
    assert type(caught.value) in fault.errors, str(caught.value)
    findings = [f for f in caught.value.findings if f.error in fault.errors and f.file]
    places = {(Path(f.file).name, f.line) for f in findings}
    assert places & {(fault.case.path.name, line) for line in fault.lines}, (
        f"none of lines {sorted(fault.lines)} of {fault.case.path.name}:\n{caught.value}"
    )


def test_the_table_is_whole():
    """Every macro of the sources is in the table, every fault of the table is marked."""
    assert len(FAULTS) >= 45 and len(TABLE) >= 14
    for name, case in CASES.items():
        macros = set(re.findall(r"\bBUG_\w+", case.path.read_text()))
        assert macros == {fault for fault in TABLE[name] if fault.startswith("BUG_")}
        assert set(planted_bugs.marked_lines(case.path)) == set(TABLE[name])
