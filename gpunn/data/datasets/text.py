"""Running text: the documentation that comes with Python, and text files of one's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpunn.errors import FileFormatError

_PARAGRAPHS = re.compile(r"\n(?:[ \t]*\n)+")


def load_python_documentation(repeats: bool = False) -> str:
    """What Python's ``help()`` says of the language: English prose, code, grammar and tables.

    The topics of the standard library's ``pydoc_data.topics`` in the order of their names,
    paragraph after paragraph with an empty line between. With Python 3.11 they are 79 topics of
    465,000 characters; other versions of Python have other texts, so results are comparable within
    one.

    Parameters
    ----------
    repeats : also the paragraphs that come again. Many topics are parts of others ("if" and "while"
        of "compound"), which is a fifth of the text: a model would be tested on what it was trained
        on. Without them each paragraph stands once, where it comes last: 373,000 characters with
        Python 3.11.

    ImportError if the installed Python comes without it, as some minimal ones do. Source: the
    Python Language Reference, Python Software Foundation, under the PSF licence.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError(
            "this Python comes without pydoc_data, the texts of its help(); install the full "
            "standard library, or use a text file of your own"
        ) from error
    paragraphs = [
        paragraph
        for name in sorted(topics)
        for paragraph in _PARAGRAPHS.split(topics[name].strip("\n").rstrip())
    ]
    if not repeats:
        last: dict[str, str] = {}
        for paragraph in reversed(paragraphs):  # whose lines are broken elsewhere if it is indented
            last.setdefault(" ".join(paragraph.split()), paragraph)
        paragraphs = list(last.values())[::-1]
    return "\n\n".join(paragraphs) + "\n"


def read_text(path: str | os.PathLike[str]) -> str:
    r"""The text of a file in UTF-8: without a byte order mark, lines ended by "\n".

    FileNotFoundError; FileFormatError for a file that is empty or not UTF-8, naming the line and
    the byte.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileFormatError(
            f"{path} is not UTF-8: byte {error.start} (0x{data[error.start]:02x}), in line {line}: "
            f"{error.reason}; save it as UTF-8, or convert it: iconv -f LATIN1 -t UTF-8"
        ) from None
    if not text.strip():
        raise FileFormatError(f"{path} holds no text")
    return text.replace("\r\n", "\n").replace("\r", "\n")
