"""Candidates: reading and applying patches."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpunn import kernels
from gpunn.bench import candidate_patch, candidates
from gpunn.bench.candidate_patch import CandidateError, Timed
from gpunn.bench.cases import host_inputs
from gpunn.bench.machine import checkout

sys.path.insert(0, str(Path(__file__).resolve().parent))
from patches import DIFF, HEADER, OLD, tree_with


def test_a_patch_is_read():
    one = candidate_patch.parse("x", HEADER + DIFF)
    assert (one.idea, one.prediction) == ("fewer of them.", "1.2.\nOr less.")
    assert (one.why, one.risk) == ("they wait.", "none.")
    assert one.parity == ("softmax_forward", "reduce_max")
    assert one.timed == (
        Timed("case", "softmax_forward 4096x1024 float32"),
        Timed("product", "1024x1024x1024 NN bfloat16"),
        Timed("case", "reduce_max 8x8 -"),
        Timed("step", "mlp-784-256-128-10 128"),
    )
    (change,) = one.changes
    assert change.path == "gpunn/value.py" and [h.start for h in change.hunks] == [0, 4]


@pytest.mark.parametrize("old, new, said", [
    ("Why: they wait.\n", "", "line 14: before the first 'diff --git' there must be Why"),
    ("Why:", "Whi:", "line 6: 'Whi' is no field; did you mean Why?"),
    ("Why:", "Why", "line 6: this is no field. A text goes on in lines that begin with a space"),
    ("Why: they wait.", "Why:", "line 6: Why is empty"),
    ("Risk:", "Weight: much\nRisk:", "line 7: Weight: 'much' is no number of 0 or more"),
    ("Risk:", "Weight: -1\nRisk:", "line 7: Weight: '-1' is no number of 0 or more"),
    ("Risk:", "Weight: 1\nWeight: 2\nRisk:", "line 8: a second Weight"),
    ("Risk:", "Idea: two\nRisk:", "line 7: a second Idea: make it a patch of its own"),
    ("Parity: softmax_forward", "Parity: softmax_forwart", "line 8: Parity: softmax_forwart is no "
     "primitive; did you mean softmax_forward?"),
    ("Case: softmax_forward 4096x1024 float32", "Case: softmax_forward 4096x1024",
     "line 9: Case: 'softmax_forward 4096x1024' is no case"),
    ("Case: softmax_forward 4096x1024", "Case: softmax_forward 4096xN", "shape '4096xN' is not"),
    ("4096x1024 float32", "4096x1024 bfloat", "bfloat is no dtype; did you mean bfloat16?"),
    ("NN bfloat16", "NX bfloat16", "line 10: Product: '1024x1024x1024 NX bfloat16' is no product"),
    ("1024x1024x1024 NN bfloat16", "2 x 4x4x4 NT float32 relu", "nothing is fused with these"),
    ("128-10 128", "128-10 64", "no training job with its batch; did you mean mlp-784-256-128-10"),
    (HEADER[HEADER.index("Case:") : HEADER.index("Parity: r")], "", None),
    (HEADER[HEADER.index("Case:") :], "\n", "nothing is to be timed: name a Case"),
    (DIFF, "", "line 15: there is no diff: append what git diff prints"),
    ("a/gpunn/value.py b/gpunn", "a/gpunn/value.py b/gpun", "twice the same file"),
    ("gpunn/value.py", "../value.py", "../value.py is not a file within the tree"),
    ("gpunn/value.py", "/value.py", "/value.py is not a file within the tree"),
    ("index 1..2 100644", "old mode 100644", "line 16: 'old mode 100644' is not understood"),
    (DIFF[DIFF.index("---") :], "Binary files a/x and b/x differ\n", "is not a text file"),
    (DIFF[DIFF.index("---") :], "", "nothing is changed in gpunn/value.py"),
    ("--- a/gpunn/value.py", "--- gpunn/value.py", "this must be '--- a/gpunn/value.py'"),
    ("+++ b/gpunn/value.py", "+++ /dev/null", "this must be '+++ b/gpunn/value.py'"),
    ("@@ -5,2 +5,3", "@@ -5,2 5,3", "line 24: this must be '@@ -LINE,COUNT +LINE,COUNT @@'"),
    ("-5,2 +5,3", "-5,3 +5,4", "line 24: the patch ends within a hunk"),
    ("-1,3 +1,3", "-1,4 +1,4", "line 24: a line of a hunk begins with ' ', '-' or '+'"),
    ("-1,3 +1,3", "-1,2 +1,3", "line 19: the hunk has more lines than it counts"),
    ("-1,3 +1,3", "-1,2 +1,2", "line 23: this must be '@@"),
    ("-5,2 +5,3", "-3,2 +3,3", "line 24: this hunk begins before the one above it ends"),
    (DIFF, DIFF + DIFF, "line 28: gpunn/value.py is changed a second time"),
])  # fmt: skip
def test_what_is_wrong_is_said(old, new, said):
    text = HEADER + DIFF
    assert old in text
    text = text.replace(old, new)
    if said is None:  # it is still a good one
        assert len(candidate_patch.parse("x", text).timed) == 2
        return
    with pytest.raises(CandidateError) as caught:
        candidate_patch.parse("x", text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("x.patch line ")


def test_the_weightiest_come_first(tmp_path):
    weights = {"a": "", "b": "Weight: 2.5\n", "c": "Weight: 10\n", "d": "Weight: 1\n", "e": "x\n"}
    for name, line in weights.items():
        (tmp_path / f"{name}.patch").write_text(line + HEADER + DIFF)
    good, bad = candidate_patch.read_folder(tmp_path)
    assert [(one.name, one.weight) for one in good] == [("c", 10), ("b", 2.5), ("a", 1), ("d", 1)]
    assert list(bad) == ["e"]
    assert len({one.digest for one in good}) == 4


def test_a_patch_is_applied(tmp_path):
    one = candidate_patch.parse("x", HEADER + DIFF)
    root = tree_with(tmp_path, value=OLD)
    new = "one\nzwei\nthree\nfour\nfive\n\nseven\n"
    assert candidate_patch.patched(one, root) == {"gpunn/value.py": new}
    assert (root / "gpunn/value.py").read_text() == OLD
    assert candidate_patch.apply(one, root) == ["gpunn/value.py"]
    assert (root / "gpunn/value.py").read_text() == new
    with pytest.raises(CandidateError) as caught:
        candidate_patch.apply(one, root)
    assert str(caught.value) == (
        "x.patch no longer fits gpunn/value.py line 2: main changed; rebase it or delete it"
    )


@pytest.mark.parametrize("text, said", [
    (OLD.replace("one", "ein"), "value.py line 1:"), (OLD.replace("five", "5"), "line 5:"),
    ("one\ntwo\nthree", "line 3:"), ("one\ntwo\nthree\n", "line 5:"), ("", "line 1:"),
    (OLD.replace("\n", "\r\n"), "line 1:"), ("\n" + OLD, "line 1:"),
])  # fmt: skip
def test_a_line_that_changed_is_named(tmp_path, text, said):
    one = candidate_patch.parse("x", HEADER + DIFF)
    with pytest.raises(CandidateError, match=f"x.patch no longer fits .*{said}"):
        candidate_patch.patched(one, tree_with(tmp_path, value=text))


def test_new_and_deleted_files(tmp_path):
    diff = (
        "diff --git a/gpunn/new.py b/gpunn/new.py\nnew file mode 100644\n--- /dev/null\n"
        "+++ b/gpunn/new.py\n@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n"
        "diff --git a/gpunn/empty.py b/gpunn/empty.py\nnew file mode 100644\nindex 0..1\n"
        "diff --git a/gpunn/value.py b/gpunn/value.py\ndeleted file mode 100644\n"
        "--- a/gpunn/value.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n"
    )
    one = candidate_patch.parse("x", HEADER + diff)
    root = tree_with(tmp_path, value="a\nb\n")
    assert candidate_patch.patched(one, root) == {
        "gpunn/new.py": "x", "gpunn/empty.py": "", "gpunn/value.py": None,
    }  # fmt: skip
    with pytest.raises(CandidateError, match="value.py line 3: main changed"):
        candidate_patch.patched(one, tree_with(tmp_path, value="a\nb\nc\n"))
    tree_with(tmp_path, value="a\nb\n", new="")
    with pytest.raises(CandidateError, match="new.py, which exists: main changed"):
        candidate_patch.apply(one, root)
    (root / "gpunn/new.py").unlink()
    candidate_patch.apply(one, root)
    assert not (root / "gpunn/value.py").exists() and (root / "gpunn/empty.py").read_bytes() == b""
    for name in ("new", "empty"):
        (root / f"gpunn/{name}.py").unlink()
    with pytest.raises(CandidateError, match="x.patch no longer fits gpunn/value.py, which is not"):
        candidate_patch.apply(one, root)
    assert not (root / "gpunn/new.py").exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_what_git_prints_is_applied(tmp_path):
    lines = [f"line {i}\n" for i in range(60)]
    old = {"a": "".join(lines), "gone": "1\n2", "b": "x\r\ny\x0cz\n\nlast"}
    lines[3:5], lines[30:30], lines[59:] = ["changed\n"], ["- more\n", "\n"], ["end"]
    new = {"a": "".join(lines), "b": "x\r\ny\x0cZ\n\nlast\n", "made": "-- é\n+\n", "none": ""}

    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, check=True).stdout

    tree_with(tmp_path, **old)
    git("init", "-q")
    git("add", ".")
    (tmp_path / "gpunn" / "gone.py").unlink()
    tree_with(tmp_path, **new)
    git("add", "-N", "gpunn/made.py", "gpunn/none.py")
    diff = git("-c", "core.quotePath=false", "diff", "--no-renames").decode()
    one = candidate_patch.parse("x", HEADER + diff)
    shutil.rmtree(tmp_path / "gpunn")
    root = tree_with(tmp_path, **old)
    target = candidate_patch.make_tree(one, root, tmp_path / "copy")
    found = {path.stem: path.read_bytes().decode() for path in (target / "gpunn").iterdir()}
    assert found == new
    assert (root / "gpunn/a.py").read_text() == old["a"]


def test_every_candidate_fits_and_names_what_there_is():
    good, bad = candidate_patch.read_folder(candidates.folder())
    assert bad == {}
    assert len(good) == len(list(candidates.folder().glob("*.patch")))
    for one in good:
        candidate_patch.patched(one, checkout())
        for timed in one.timed:
            if timed.kind == "case":
                case = candidate_patch.case_of(timed.key)
                small = tuple(min(n, 64) for n in case.shape)
                host_inputs(kernels.table()[case.primitive], small, case.dtype)
