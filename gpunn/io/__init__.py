"""Model files (safetensors) and files that are written whole or not at all."""

from gpunn.io.atomic import atomic_path, check_target, write_text
from gpunn.io.safetensors import FileFormatError, load, load_arrays, load_metadata, save

__all__ = [
    "FileFormatError",
    "atomic_path",
    "check_target",
    "load",
    "load_arrays",
    "load_metadata",
    "save",
    "write_text",
]
