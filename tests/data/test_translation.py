"""Pairs of sentences: gettext catalogs and Tatoeba's two formats, whole and damaged."""

from __future__ import annotations

import gettext
import struct

import pytest

from gpunn import data
from gpunn.data.datasets import translation
from gpunn.errors import FileFormatError


def catalog(entries, order="<", name=None):
    """The bytes of a compiled catalog with these (msgid, msgstr), as msgfmt writes them."""
    count = len(entries)
    tables, texts, at = [[], []], b"", 28 + 16 * count
    for column in (0, 1):
        for entry in entries:
            text = entry[column].encode()
            tables[column].append((len(text), at + len(texts)))
            texts += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    rows = b"".join(struct.pack(f"{order}2I", *row) for table in tables for row in table)
    return head + rows + texts


ENTRIES = [
    ("", "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n > 1);\n"),
    ("%1 cell\0%1 cells", "%1 cellule\0%1 cellules"),
    ("Close", "Fermer"),
    ("menu\x04Open…", "Ouvrir…"),
    ("untranslated", " "),
]
PAIRS = [("%1 cell", "%1 cellule"), ("%1 cells", "%1 cellules"), ("Close", "Fermer"),
         ("Open…", "Ouvrir…")]  # fmt: skip


@pytest.mark.parametrize("order", "<>")
def test_catalog_in_both_byte_orders_as_gettext_reads_it(tmp_path, order):
    path = tmp_path / "a.mo"
    path.write_bytes(catalog(ENTRIES, order))
    assert translation._catalog(path) == PAIRS
    with open(path, "rb") as file:
        known = gettext.GNUTranslations(file)
    assert [known.ngettext("%1 cell", "%1 cells", n) for n in (1, 2)] == [f for _, f in PAIRS[:2]]
    assert known.gettext("Close") == "Fermer" and known.pgettext("menu", "Open…") == "Ouvrir…"


def test_the_packaged_sentences():
    pairs = data.load_interface_sentences()
    assert len(pairs) > 3000 and len(set(pairs)) == len(pairs)
    assert all(english.strip() and french.strip() for english, french in pairs)
    assert not any("\0" in text or "\x04" in text for pair in pairs for text in pair)
    for pair in (("Close", "Fermer"), ("%1 Item", "%1 élément"), ("%1 Items", "%1 éléments")):
        assert pair in pairs
    assert pairs == data.load_interface_sentences()
    # All that gettext itself finds for a message without a context is among them.
    folder = translation.package_file(
        "jupyterlab_language_pack_fr_FR", "locale/fr_FR/LC_MESSAGES/notebook.mo"
    )
    with open(folder, "rb") as file:
        known = gettext.GNUTranslations(file)
    plain = [english for english, _ in translation._catalog(folder)]
    assert sum((text, known.gettext(text)) in pairs for text in plain) > 30


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda file: b"no catalog" * 9, "it does not begin as one"),
        (lambda file: file[:20], "it does not begin as one"),
        (lambda file: file[:40], "byte 28: a text of 0 bytes at byte 108 lies behind the end"),
        (lambda file: file[:12] + b"\xff" * 4 + file[16:], "the file ends within its tables"),
        (lambda file: file[:-9], "lies behind the end of the file"),
        (lambda file: file.replace("…".encode(), b"\xff\xff\xff"), "this is not UTF-8 text"),
    ],
)
def test_a_damaged_catalog_is_told_with_the_byte(tmp_path, change, told):
    path = tmp_path / "broken.mo"
    path.write_bytes(change(catalog(ENTRIES)))
    with pytest.raises(FileFormatError, match=told) as error:
        translation._catalog(path)
    assert "broken.mo" in str(error.value)


# ---- Tatoeba -------------------------------------------------------------------------------------

WANTED = [("Go.", "Va !"), ("Hi.", "Salut !"), ("Hi.", "Ça va ?")]


def test_manythings_old_and_new_and_the_export_of_tatoeba(tmp_path):
    source = "CC-BY 2.0 (France) Attribution: tatoeba.org #2877272 (CM) & #1158250 (Wittydev)"
    texts = {
        "old.txt": "".join(f"{a}\t{b}\n" for a, b in WANTED),
        "new.txt": "".join(f"{a}\t{b}\t{source}\n" for a, b in WANTED),
        "export.tsv": "\ufeff" + "".join(f"{n}\t{a}\t{9 - n}\t{b}\r\n" for n, (a, b) in
                                         enumerate(WANTED, 1)) + "\r\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert data.load_tatoeba(tmp_path / name) == WANTED, name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"Go.\tVa !\nHi. Salut !\n", ":2: there are 1 fields"),
        (b"1\tGo.\t2\tVa !\n3\tHi.\n", ":2: there are 2 fields.*number, sentence, number"),
        (b"1\tGo.\t2\tVa !\n3\tHi.\tx\tSalut\n", ":2: expected number.*the numbers are '3', 'x'"),
        (b"a\tGo.\tb\tVa !\n", ":1: there are 4 fields"),
        (b"Go.\tVa !\nHi.\t \n", ":2: a sentence is empty"),
        (b"Go.\tVa !\n\xe9t\xe9\tx\n", ":2: this is not UTF-8"),
        (b"\n\n", "has no sentences"),
    ],
)
def test_a_damaged_file_is_told_with_the_line(tmp_path, content, told):
    path = tmp_path / "fra.txt"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=told):
        data.load_tatoeba(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="manythings"):
        data.load_tatoeba(tmp_path / "no.txt")
