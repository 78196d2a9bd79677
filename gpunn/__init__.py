"""gpunn: training neural networks on NVIDIA GPUs with hand-written CUDA kernels."""

from gpunn.device import Device as device

__version__ = "0.1.0"
