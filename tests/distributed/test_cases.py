"""Every case of ``cases/*.py`` on every number of ranks that it names."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("run_cases", Path(__file__).with_name("run_cases.py"))
RUN_CASES = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(RUN_CASES)

ALL = [(name, ranks) for name, numbers, _ in RUN_CASES.found() for ranks in numbers]


@pytest.mark.parametrize(("name", "ranks"), ALL, ids=[f"{n}-{ranks} ranks" for n, ranks in ALL])
def test_case(name, ranks, outcome):
    errors = outcome(name, ranks)
    failed = [f"rank {rank}:\n{error}" for rank, error in enumerate(errors) if error]
    assert not failed, "\n".join(failed)
