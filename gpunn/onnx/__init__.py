"""ONNX: models that other programs run, and models from other programs.

`export` writes a model as an .onnx file, `load` reads one as a Module. The package onnx is imported
when one of them is called: pip install 'gpunn[onnx]'.
"""

from gpunn.onnx.export import export
from gpunn.onnx.load import load
from gpunn.onnx.recording import ExportError

__all__ = ["ExportError", "export", "load"]
