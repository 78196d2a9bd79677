"""The example "translation": its split, its baselines, its networks."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gpunn
from gpunn import data
from gpunn.train import find_job

JOB = find_job("translation")
script = sys.modules[JOB.config.__module__]
baselines = sys.modules[script.by_memory.__module__]

PAIRS = [
    ("Open the file", "Ouvrir le fichier"),
    ("Open the notebook", "Ouvrir le notebook"),
    ("Close the file", "Fermer le fichier"),
    ("Close the panel", "Fermer le panneau"),
    ("Rename the workspace", "Renommer l'espace de travail"),
    ("The workspace", "L'espace de travail"),
]


def test_no_english_text_is_on_both_sides():
    split = script.load(JOB.configure(seed=3))
    plain = [
        {"".join(sign for sign in english.casefold() if sign.isalpha()) or english
         for english, _ in part} for part in split
    ]  # fmt: skip
    assert not plain[0] & plain[2] and not plain[0] & plain[1] and not plain[1] & plain[2]
    sizes = [len(part) for part in plain]
    assert abs(sizes[2] / sum(sizes) - 0.1) < 0.002 and abs(sizes[1] / sum(sizes) - 0.1) < 0.002


def test_word_probabilities_are_those_of_the_textbook():
    """The loop of P. Koehn, Statistical Machine Translation, 2010, figure 4.3, with "" for NULL."""
    split = [(["", *baselines.words(e)], baselines.words(f)) for e, f in PAIRS]
    table = {(e, f): 1.0 for english, french in split for e in english for f in french}
    for _ in range(4):
        count, total = dict.fromkeys(table, 0.0), {}
        for english, french in split:
            for f in french:
                whole = sum(table[e, f] for e in english)
                for e in english:
                    count[e, f] += table[e, f] / whole
                    total[e] = total.get(e, 0.0) + table[e, f] / whole
        table = {(e, f): value / total[e] for (e, f), value in count.items()}
    mine = baselines.word_probabilities(PAIRS, rounds=4)
    assert sum(map(len, mine.values())) == len(table)
    for (e, f), value in table.items():
        assert mine[e][f] == pytest.approx(value, rel=1e-12)
    assert max(mine["notebook"], key=mine["notebook"].get) == "notebook"


def test_dictionary_and_memory_translate():
    texts = ["Close the Notebook", "rename the file XYZ", "open the file"]
    said = script.with_dictionary(PAIRS, texts)
    assert said[0] == "Fermer le notebook" and said[1].endswith("fichier xyz")
    assert script.by_memory(PAIRS, texts)[2] == "Ouvrir le fichier"
    assert script.by_memory(PAIRS, ["Rename"]) == ["Renommer l'espace de travail"]
    assert baselines.words("l'espace, n°1") == ["l'", "espace", ",", "n", "°", "1"]


def test_capitals_go_and_come_back():
    assert script.as_source("Open JupyterLab") == " open jupyterlab"
    for french in ("Ouvrir JupyterLab", "Ouvrir", "JSON est là", "À propos", "%1 de 2", "R"):
        assert script.as_french(script.as_target(french), "Any") == french
    assert script.as_target("JSON est là") == " JSON est là"
    assert script.as_target("À propos") == " à propos"
    assert script.as_french(" ouvrir", "open") == "ouvrir" and script.as_french("", "Open") == ""


@pytest.mark.parametrize("model", ["transformer", "seq2seq"])
def test_a_step_of_the_search_gives_the_logits_of_training(model):
    gpunn.manual_seed(0)
    config = JOB.configure(model=model, width=16, layers=2, heads=2)
    network = script.network(config, 20)
    network.eval()
    source, lengths = data.pad_sequences([[5, 6, 7, 2], [8, 2]])
    shown = np.array([[1, 9, 10], [1, 11, 12]])
    source, lengths, shown = map(gpunn.tensor, (source, np.stack([lengths, lengths], 1), shown))
    with gpunn.no_grad():
        want = network(source, shown, lengths).numpy()
        state = network.begin(source, lengths[:, 0], 5)
        for at in range(3):
            logits, state = network.step(shown[:, at : at + 1], state)
            np.testing.assert_allclose(logits.numpy(), want[:, at], atol=2e-5)
        weights = network.attention(source[:1], shown[:1])
    assert weights.shape == (3, 4)
    np.testing.assert_allclose(weights.sum(-1).numpy(), 1, rtol=1e-5)


def test_targets_are_what_follows_what_is_shown():
    subwords = data.Subwords.learn([" " + text for pair in PAIRS for text in pair] * 2, 90)
    source, shown, lengths, said = script.as_arrays(PAIRS, subwords)
    assert source.shape == shown.shape == said.shape and source.shape[1] % 8 == 0
    for row, (english, french) in enumerate(PAIRS):
        assert subwords.decode(source[row]) == script.as_source(english)
        assert script.as_french(subwords.decode(said[row]), english) == french
        end = lengths[row, 1]
        assert shown[row, 0] == script.START and said[row, end - 1] == script.END
        assert np.array_equal(shown[row, 1:end], said[row, : end - 1])
        assert not said[row, end:].any() and not source[row, lengths[row, 0] :].any()


def test_it_learns_from_a_file_of_tatoeba(tmp_path):
    lines = [f"{a} {n}\t{b} {n}\tCC-BY 2.0 (France)" for n in "abcdefghij" for a, b in PAIRS]
    path = tmp_path / "fra.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    split = script.load(JOB.configure(file=str(path)))
    assert sum(map(len, split)) == len(lines)
    path.write_text("\n".join(lines[:6]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"fra.txt: 6 English texts .* it takes 10 or more"):
        script.load(JOB.configure(file=str(path)))
    with pytest.raises(ValueError, match="width 20 is not a multiple of heads 3"):
        JOB.configure(width=20, heads=3)
    with pytest.raises(ValueError, match="even and at most 256"):
        JOB.configure(model="seq2seq", width=300)
