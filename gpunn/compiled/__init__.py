"""`gpunn.compile`: a training step that is traced once and then replayed without its Python.

>>> @gpunn.compile
... def step(x, y):
...     optimizer.zero_grad()
...     loss = F.cross_entropy(model(x), y)
...     loss.backward()
...     optimizer.step()
...     return loss

On a GPU the launches of the step are captured as a CUDA graph, in memory that was planned, and
every further call copies its arguments into place and launches the graph. The emulator does the
same with a list of calls. On the CPU the step's Python runs each time, in planned memory.
"""

from gpunn.compiled.step import CompiledStep, compile

__all__ = ["CompiledStep", "compile"]
