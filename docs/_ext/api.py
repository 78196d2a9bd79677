"""The directive ``api``: a table with a line for each name, and below it the entries themselves.

.. api:: gpunn.optim

   SGD Adam AdamW

Options: ``:members:`` names the methods of classes that are shown, or ``none``, where those with
docstrings are not the ones to show; ``:quiet:`` leaves the table out.
"""

from __future__ import annotations

import importlib
import inspect

from docstrings import translate
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.ext.autodoc.mock import mock
from sphinx.util.docutils import SphinxDirective


class Api(SphinxDirective):
    """See above."""

    required_arguments = 1
    has_content = True
    option_spec = {"members": directives.unchanged, "quiet": directives.flag}

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        names = " ".join(self.content).split()
        with mock(self.config.autodoc_mock_imports):
            lines = [] if "quiet" in self.options else _table(module, names)
            lines += ["", f".. currentmodule:: {module}", ""]
            for name in names:
                lines += self._entry(module, name)
        node = nodes.container()
        self.state.nested_parse(
            StringList(lines, source=f"{self.env.doc2path(self.env.docname)}:{module}"), 0, node
        )
        return node.children

    def _entry(self, module: str, name: str) -> list[str]:
        found = _find(module, name)
        if inspect.isclass(found):
            members = self.options.get("members", "")
            shown = ":no-members:" if members == "none" else f":members: {members}"
            return [f".. autoclass:: {name}", f"   {shown}", ""]
        if inspect.isroutine(found):
            return [f".. autofunction:: {name}", ""]
        if callable(found):  # a primitive: an object that is called as a function
            text = translate(inspect.cleandoc(found.__doc__).split("\n"))
            head = f".. py:function:: {name}{_signature(found)}"
            return [head, "", *(f"   {line}" for line in text), ""]
        raise self.error(f"api: {module}.{name} is a {type(found).__name__}; describe it by hand")


def _signature(function) -> str:
    """Its parameters without the types, which for arrays say nothing."""
    signature = inspect.signature(function)
    empty = inspect.Parameter.empty
    plain = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _find(module: str, name: str):
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _table(module: str, names: list[str]) -> list[str]:
    lines = [".. list-table::", "   :class: api", "   :widths: auto", ""]
    for name in names:
        first = translate([first_sentence(_find(module, name).__doc__)])[0]
        lines += [f"   * - :py:obj:`{name} <{module}.{name}>`", f"     - {first}"]
    return lines


def first_sentence(doc: str | None) -> str:
    """The first paragraph of a docstring up to the end of its first sentence, in one line."""
    paragraph = " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split())
    end = paragraph.find(". ")
    sentence = paragraph if end < 0 else paragraph[:end]
    return sentence.removesuffix(".").removesuffix("::").removesuffix(":")


def read_docstring(app, what, name, obj, options, lines) -> None:
    """Give Sphinx a docstring in its own language."""
    lines[:] = translate(list(lines))


def known_name(app, env, node, contnode):
    """What a text calls gpunn.… but has no entry is code without a link, if only it exists."""
    target = node.get("reftarget", "").split("(")[0]
    if node.get("refdomain") != "py" or not target.startswith("gpunn."):
        return None
    parts = target.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        try:
            for part in parts[end:]:
                found = getattr(found, part)
        except AttributeError:
            return None
        return contnode
    return None


def setup(app) -> dict:
    app.add_directive("api", Api)
    app.connect("missing-reference", known_name)
    app.connect("autodoc-process-docstring", read_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
