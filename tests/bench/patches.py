"""A candidate's patch of the tests' own, and trees for it."""

HEADER = """\
Idea: fewer
 of them.
Prediction: 1.2.

 Or less.
Why: they wait.
Risk: none.
Parity: softmax_forward reduce_max
Case: softmax_forward 4096x1024 float32
Product: 1024x1024x1024 NN bfloat16
Parity: reduce_max
Case: reduce_max 8x8 -
Step: mlp-784-256-128-10 128

"""
DIFF = """\
diff --git a/gpunn/value.py b/gpunn/value.py
index 1..2 100644
--- a/gpunn/value.py
+++ b/gpunn/value.py
@@ -1,3 +1,3 @@
 one
-two
+zwei
 three
@@ -5,2 +5,3 @@ def f():
 five

+seven
"""
OLD = "one\ntwo\nthree\nfour\nfive\n\n"


def tree_with(root, **files):
    """A tree at `root` with these texts as ``gpunn/NAME.py``."""
    for name, text in files.items():
        path = root / "gpunn" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (root / "kernels").mkdir(exist_ok=True)
    return root
