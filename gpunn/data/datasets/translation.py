"""English sentences and their French translations: a program's texts, and Tatoeba's sentences."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from gpunn.data.datasets.packaged import package_file
from gpunn.errors import FileFormatError

_PACKAGE = "jupyterlab_language_pack_fr_FR"
_LITTLE, _BIG = b"\xde\x12\x04\x95", b"\x95\x04\x12\xde"


def load_interface_sentences() -> list[tuple[str, str]]:
    """The texts of JupyterLab's interface, (English, French): 3,287 pairs of up to 102 words.

    Labels, messages and explanations of settings, as its translators wrote them (as many in version
    4.5 of the package); placeholders such as ``%1`` and line breaks stand in both. Singular and
    plural are two pairs. Pairs that occur twice, in two extensions or in two contexts, are given
    once; a text that has several translations is in several pairs. The order is fixed: that of the
    files' names, and within a file that of the English texts.

    ImportError, saying what to install, without the package jupyterlab-language-pack-fr-FR, whose
    compiled catalogs (``.mo``) these are; FileFormatError, with file and byte, for a damaged one.
    Source: Project Jupyter Contributors (BSD-3-Clause).
    """
    first = package_file(
        _PACKAGE, "locale/fr_FR/LC_MESSAGES/jupyterlab.mo", "jupyterlab-language-pack-fr-FR"
    )
    pairs: dict[tuple[str, str], None] = {}
    for path in sorted(first.parent.glob("*.mo")):
        pairs.update(dict.fromkeys(_catalog(path)))
    return list(pairs)


def _catalog(path: Path) -> list[tuple[str, str]]:
    """The pairs of a compiled gettext catalog, in its order, without header and empty texts.

    The standard library's gettext looks texts up, but does not list them, and keeps of a plural
    only its translation. The format: https://www.gnu.org/software/gettext/manual (MO Files).
    """
    data = path.read_bytes()
    if len(data) < 28 or data[:4] not in (_LITTLE, _BIG):
        raise FileFormatError(f"{path} is no compiled gettext catalog: it does not begin as one")
    order = "<" if data[:4] == _LITTLE else ">"
    count, english, french = struct.unpack_from(f"{order}3I", data, 8)
    pairs = []
    for number in range(count):
        source, target = (
            _text(path, data, order, table + 8 * number) for table in (english, french)
        )
        sources = source.partition("\x04")[2] if "\x04" in source else source  # behind its context
        # Of a plural both texts follow each other: English has two forms, French the same two.
        for pair in zip(sources.split("\0"), target.split("\0"), strict=False):
            if all(text.strip() for text in pair):
                pairs.append(pair)
    return pairs


def _text(path: Path, data: bytes, order: str, at: int) -> str:
    """The text whose length and place stand at byte `at`."""
    if at + 8 > len(data):
        raise FileFormatError(f"{path}: byte {at}: the file ends within its tables; is it cut off?")
    length, place = struct.unpack_from(f"{order}2I", data, at)
    if place + length > len(data):
        raise FileFormatError(
            f"{path}: byte {at}: a text of {length} bytes at byte {place} lies behind the end of "
            "the file; is it cut off?"
        )
    try:
        return data[place : place + length].decode()
    except UnicodeDecodeError as error:
        wrong = place + error.start
        raise FileFormatError(f"{path}: byte {wrong}: this is not UTF-8 text") from None


def load_tatoeba(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Read one's own copy of Tatoeba's sentence pairs: (source, target), in the file's order.

    Two formats, UTF-8 with tabs between, are told apart by the first line:

    - ``fra.txt`` of https://www.manythings.org/anki: source, target and, in newer files, who wrote
      them
    - the export "sentence pairs" of https://tatoeba.org/downloads: number, source, number, target

    Empty lines are passed over. Sentences are under CC BY 2.0 FR.

    FileNotFoundError; FileFormatError, with the line, for what is not UTF-8, has another number of
    fields, no number where one belongs, or an empty sentence, and for a file without sentences.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; unpack fra.txt from https://www.manythings.org/anki or save "
            "sentence pairs from https://tatoeba.org/downloads"
        )
    pairs: list[tuple[str, str]] = []
    numbered: bool | None = None
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise FileFormatError(f"{path}:{number}: this is not UTF-8 text") from None
            if not line.strip():
                continue
            fields = line.split("\t")
            if numbered is None:
                numbered = len(fields) == 4 and fields[0].isdecimal()
            pairs.append(_pair(f"{path}:{number}", fields, numbered))
    if not pairs:
        raise FileFormatError(f"{path} has no sentences")
    return pairs


def _pair(place: str, fields: list[str], numbered: bool) -> tuple[str, str]:
    form = (
        "number, sentence, number, sentence"
        if numbered
        else "sentence, sentence and perhaps a source"
    )
    fits = len(fields) == 4 if numbered else len(fields) in (2, 3)
    if not fits:
        raise FileFormatError(
            f"{place}: there are {len(fields)} fields between tabs; expected {form}"
            + ("" if numbered else ", or Tatoeba's number, sentence, number, sentence from line 1")
        )
    if numbered and not (fields[0].isdecimal() and fields[2].isdecimal()):
        raise FileFormatError(
            f"{place}: expected {form}; the numbers are {fields[0]!r}, {fields[2]!r}"
        )
    source, target = (fields[1], fields[3]) if numbered else fields[:2]
    if not source.strip() or not target.strip():
        raise FileFormatError(f"{place}: a sentence is empty")
    return source.strip(), target.strip()
