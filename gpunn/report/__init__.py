"""Reports as single HTML files: of a training run and of a benchmark result.

``gpunn report RUN`` and ``gpunn report RESULT.json`` write them from files. In a script of one's
own, `Report` makes one of a history and a model. Nothing is loaded from the network, texts are
escaped, and the page can be sent, printed and read on a phone. Needs ``pip install
"gpunn[report]"``.
"""

try:
    import jinja2  # noqa: F401
    import PIL  # noqa: F401
except ImportError as _error:
    raise ImportError(
        f'a report needs {_error.name}, which is not installed; run: pip install "gpunn[report]" '
        "(or: pip install jinja2 pillow)"
    ) from _error

from gpunn.report.page import Card, Cell, Finding, Page, Section
from gpunn.report.result import result_page
from gpunn.report.run import run_page
from gpunn.report.training import Report

__all__ = ["Card", "Cell", "Finding", "Page", "Report", "Section", "result_page", "run_page"]
