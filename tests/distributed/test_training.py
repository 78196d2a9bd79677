"""Trainings as users start them: a rank is killed, a run is resumed, the command line."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("training_job.py")


def test_a_killed_rank_ends_the_job_and_the_last_checkpoint_resumes(tmp_path, run_ranks):
    killed = run_ranks(2, JOB, tmp_path / "run", "kill")
    assert killed.returncode != 0
    said = [line for line in killed.stderr.splitlines() if line.startswith("gpunn:")]
    assert len(said) == 1, killed.stderr
    assert "rank 1" in said[0] and "epoch 2" in said[0] and "step 3" in said[0]
    assert f"checkpoint='{tmp_path / 'run'}', resume='auto'" in killed.stderr
    resumed = run_ranks(2, JOB, tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines() == [
        "resumed True after step 7", "same weights True same losses True"
    ]  # fmt: skip


def test_command_line(tmp_path, run_ranks):
    wanted = ["train", "digits", "--limit", "150", "--epochs", "2", "--json"]
    run = run_ranks(2, "-m", "gpunn", *wanted, "--output", tmp_path / "run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["folder"] == str(tmp_path / "run") and len(result["history"]) == 2
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits", "--set", "dropout=2"], "dropout is 2"),  # before the ranks meet
        (["text", "--output", "."], "exists already"),  # what rank 0 alone finds out
        (["cartpole"], "in a loop of its own"),
    ],
)
def test_wrong_use_is_told_once(arguments, words, tmp_path, run_ranks):
    (tmp_path / "file").touch()
    run = run_ranks(2, "-m", "gpunn", "train", *arguments, cwd=tmp_path)
    assert run.returncode == 2, run.stdout + run.stderr
    assert [words in line for line in run.stderr.splitlines()].count(True) == 1, run.stderr


def as_nobody(folder):
    """What to put before a command so that nobody runs it, if this is root.

    Python may lie where only root can read: then with the right to read what others may not.
    """
    if os.geteuid() != 0:
        return []
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # The first that nobody runs still has root's rights while it is started; not what that starts.
    trial = "import subprocess as s, sys; s.run([sys.executable, '-c', 'import numpy'], check=True)"
    for right in (None, "dac_read_search", "dac_override"):
        more = [f"--inh-caps=+{right}", f"--ambient-caps=+{right}"] if right else []
        tried = [*user, *more, sys.executable, "-c", trial]
        if subprocess.run(tried, cwd=folder, capture_output=True).returncode == 0:
            return [*user, *more]
    return pytest.skip("root may not let nobody read this Python here")


def test_not_as_root(run_ranks):
    script = "import os; from gpunn import distributed as d; g = d.init(); " + (
        "print(g.exchange(os.geteuid() != 0) if g.main else g.exchange(os.geteuid() != 0) and '')"
    )
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which is closed to others
        os.chmod(folder, 0o777)
        before = as_nobody(folder)
        run = run_ranks(2, "-c", script, before=before, cwd=folder, env={"HOME": folder})
    assert run.returncode == 0 and run.stdout.strip() == "[True, True]", run.stdout + run.stderr
