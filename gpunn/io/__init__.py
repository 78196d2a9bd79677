"""Model files (safetensors), alone or in shards, under gpunn's names or those of other libraries;
and files that are written whole or not at all."""

from gpunn.errors import FileFormatError
from gpunn.io.atomic import atomic_path, check_target, write_text
from gpunn.io.layouts import LAYOUTS, from_layout, guess_layout, to_layout
from gpunn.io.pretrained import load_into
from gpunn.io.safetensors import load, load_arrays, load_metadata, save

__all__ = [
    "LAYOUTS",
    "FileFormatError",
    "atomic_path",
    "check_target",
    "from_layout",
    "guess_layout",
    "load",
    "load_arrays",
    "load_into",
    "load_metadata",
    "save",
    "to_layout",
    "write_text",
]
