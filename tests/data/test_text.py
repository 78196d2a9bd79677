"""Texts: the documentation of Python, and files of one's own, right and wrong ones."""

from pydoc_data.topics import topics

import pytest

from gpunn import data
from gpunn.errors import FileFormatError


def squeezed(text):
    return " ".join(text.split())


def test_the_documentation_holds_each_paragraph_once():
    text = data.load_python_documentation()
    paragraphs = [squeezed(part) for part in text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    known = set(paragraphs)
    for topic in topics.values():
        assert all(squeezed(part) in known for part in topic.strip().split("\n\n"))
    assert 200_000 < len(text) < len(data.load_python_documentation(repeats=True))
    assert text == data.load_python_documentation()


def test_the_whole_documentation_is_all_topics_in_the_order_of_their_names():
    whole = squeezed(data.load_python_documentation(repeats=True))
    assert whole == " ".join(squeezed(topics[name]) for name in sorted(topics))
    lines = data.load_python_documentation(repeats=True).splitlines()
    assert set(topics["lambda"].strip().splitlines()) <= set(lines)  # indented as it was


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne\r\ntwo\rthree – ß\n".encode())
    assert data.read_text(path) == "One\ntwo\nthree – ß\n"


@pytest.mark.parametrize(
    "content, message",
    [
        ("one\nzwölf".encode("latin1"), r"not UTF-8: byte 6 \(0xf6\), in line 2: .*iconv"),
        ("aß".encode()[:-1], r"byte 1 \(0xc3\), in line 1: unexpected end of data"),
        ("text".encode("utf-16"), r"byte 0 \(0xff\), in line 1"),
        (b" \r\n", "holds no text"),
        (b"", "holds no text"),
    ],
)
def test_what_is_no_text(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        data.read_text(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*b.txt"):
        data.read_text(tmp_path / "b.txt")
