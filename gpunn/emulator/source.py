"""What must be known of a CUDA source before it is compiled: its kernels and what they declare.

This reads text, not C++: comments are removed, brackets are matched. What it does not understand it
leaves out; the compiler has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+["<]([^">]+)[">]', re.MULTILINE)
_DYNAMIC = re.compile(r"extern\s+(?:__device__\s+)?__shared__[^;{}]*?(\w+)\s*\[\s*\]")
_OPEN, _CLOSE = "([{<", ")]}>"


@dataclass(frozen=True)
class Declaration:
    """A kernel as its source declares it; expressions are in the words of the source."""

    name: str
    template: tuple[str, ...] | None  # its parameters, such as "typename T", "int N = 4"
    bounds: str  # threads of __launch_bounds__, or ""
    cluster: str  # of __cluster_dims__, or ""
    parameters: tuple[str, ...]  # names


def without_comments(text: str) -> str:
    """The text with comments blanked out; lines stay where they are."""

    def blank(found: re.Match) -> str:
        piece = found[0]
        return piece if piece[0] in "\"'" else re.sub(r"[^\n]", " ", piece)

    return _COMMENTS.sub(blank, text)


def closure(path: Path, folders: Iterable[Path]) -> list[Path]:
    """`path` and all files that it includes from its own folder and from `folders`."""
    found, todo = [], [path.resolve()]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.append(file)
        for name in _INCLUDE.findall(file.read_text(encoding="utf-8", errors="replace")):
            for folder in (file.parent, *folders):
                if (folder / name).is_file():
                    todo.append((folder / name).resolve())
                    break
    return found


def dynamic_shared_names(texts: Iterable[str]) -> list[str]:
    """Names of all arrays ``extern __shared__ T name[]``."""
    names = {name for text in texts for name in _DYNAMIC.findall(without_comments(text))}
    return sorted(names)


def split(text: str) -> list[str]:
    """The parts of a list separated by commas, brackets matched."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        if letter in _OPEN:
            depth += 1
        elif letter in _CLOSE and text[position - 1 : position + 1] != "->":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last or parts else []


def _bracket(text: str, start: int) -> tuple[str, int]:
    """What stands in the brackets that open at `start`, and the place behind them."""
    depth = 0
    for position in range(start, len(text)):
        depth += text[position] == "("
        depth -= text[position] == ")"
        if depth == 0:
            return text[start + 1 : position], position + 1
    return text[start + 1 :], len(text)


def _template_before(text: str, end: int) -> tuple[str, ...] | None:
    """The parameters of the template<…> that stands directly before `end`, if there is one."""
    head = text[:end].rstrip()
    head = re.sub(r"(?:(?:static|inline|extern|\"C\")\s*)+$", "", head).rstrip()
    if not head.endswith(">"):
        return None
    depth = 0
    for position in range(len(head) - 1, -1, -1):
        depth += head[position] == ">"
        depth -= head[position] == "<"
        if depth == 0:
            if re.search(r"\btemplate\s*$", head[:position]):
                return tuple(split(head[position + 1 : -1]))
            return None
    return None


def kernels(text: str) -> dict[str, Declaration]:
    """The kernels that a source declares, by name."""
    text = without_comments(text)
    found: dict[str, Declaration] = {}
    for start in re.finditer(r"\b__global__\b", text):
        position, clauses = start.end(), {}
        while word := re.compile(r"[\s*&]*(\w+)\s*").match(text, position):
            name, position = word[1], word.end()
            if text[position : position + 1] != "(":
                continue
            inside, position = _bracket(text, position)
            if name.startswith("__"):
                clauses[name] = inside
                continue
            bounds = split(clauses.get("__launch_bounds__", ""))
            made = Declaration(
                name,
                _template_before(text, start.start()),
                bounds[0] if bounds else "",
                clauses.get("__cluster_dims__", ""),
                tuple(_name_of(part) for part in split(inside) if part != "void"),
            )
            found.setdefault(name, made)
            break
    return found


def _name_of(parameter: str) -> str:
    words = re.findall(r"\w+", parameter.split("=")[0].split("[")[0])
    return words[-1] if words else ""


def base_name(expression: str) -> str:
    """The kernel's own name in a name expression: ``ns::softmax<float, 2>`` is of softmax."""
    return expression.split("<")[0].split("::")[-1].strip()


def template_definitions(declaration: Declaration, expression: str) -> str | None:
    """C++ that gives the template's parameters their values in `expression`; None if it cannot."""
    if declaration.template is None:
        return ""
    opened = expression.find("<")
    values = split(expression[opened + 1 : expression.rindex(">")]) if opened >= 0 else []
    lines = []
    for number, parameter in enumerate(declaration.template):
        named, _, default = parameter.partition("=")
        words = re.fullmatch(r"(.*\W)?(\w+)\s*", named.strip(), re.DOTALL)
        value = values[number] if number < len(values) else default.strip()
        if not words or not words[1] or not value or "..." in parameter or "template" in parameter:
            return None
        if words[1].strip() in ("typename", "class"):
            lines.append(f"using {words[2]} = {value};")
        else:
            lines.append(f"constexpr {words[1].strip()} {words[2]} = {value};")
    return " ".join(lines)
