"""Settings: their ranges, their TOML, and mistakes told with file and line."""

from __future__ import annotations

import dataclasses
import re
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn.train.configuration import (
    ConfigurationError,
    Layer,
    build,
    check,
    commented_toml,
    config_from_dict,
    config_to_dict,
    config_to_toml,
    read_config,
    setting,
    settings_of,
    toml_value,
)
from gpunn.train.jobs import DigitsConfig
from gpunn.train.toml_positions import find_positions

CONFIGS = [
    DigitsConfig(),
    DigitsConfig(seed=2**40, hidden=(7,), learning_rate=0.1 + 0.2, limit=500, dropout=0.0),
    DigitsConfig(hidden=(), device="CUDA:1", weight_decay=1e-300),
]


# ---- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sed": 1}, "no setting 'sed'; did you mean 'seed'?"),
        ({"xyzzy": 1}, "no setting 'xyzzy'; there are seed, device, hidden"),
        ({"seed": "1"}, 'seed must be a whole number, got "1"'),
        ({"seed": True}, "seed must be a whole number, got true"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"hidden": [1.5]}, r"hidden\[0\] must be a whole number, got 1.5"),
        ({"hidden": 5}, "hidden must be a list of whole numbers, got 5"),
        ({"dropout": "0.1"}, 'dropout must be a number, got "0.1"'),
        ({"limit": 1.5}, "limit must be a whole number"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"epochs": 0}, "epochs is 0; it must be 1 or more"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "is nan; it must be a finite number, above 0"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
        ({"activation": "rel"}, 'is "rel"; did you mean "relu"\\? It must be one of relu, leaky'),
        ({"device": "gpu"}, 'device is "gpu"; it must be one of auto, cpu, cuda, cuda:1, emulator'),
        ({"device": "cuda:x"}, 'device is "cuda:x"; it must be one of auto, cpu'),
        ({"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"hidden": [8, 0]}, r"hidden\[1\] is 0; it must be 1 or more"),
        ({"limit": 10}, "limit is 10; it must be 100 or more"),
        ({"precision": "fp8"}, "fp32, tf32, bf16, fp16"),
    ],
)
def test_settings_refused(values, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        config_from_dict(DigitsConfig, values, "somewhere")
    (problem,) = caught.value.problems
    assert problem.place == "somewhere" and str(caught.value).startswith("somewhere: ")


def test_a_configuration_is_checked_however_it_is_made():
    with pytest.raises(ConfigurationError, match="2 mistakes in the settings") as caught:
        DigitsConfig(epochs=0, hidden=(3, -1))
    assert [problem.path for problem in caught.value.problems] == [("hidden", 1), ("epochs",)]
    with pytest.raises(ConfigurationError, match="epochs is -1"):
        dataclasses.replace(DigitsConfig(), epochs=-1)
    made = DigitsConfig(hidden=[np.int64(3)], learning_rate=1, limit=None)
    assert made.hidden == (3,) and type(made.hidden[0]) is int
    assert type(made.learning_rate) is float and made == DigitsConfig(hidden=(3,), learning_rate=1)


def test_later_layers_win_and_every_mistake_is_told_with_its_place():
    layers = [
        Layer({"epochs": 3, "seed": 1, "sede": 2}, lambda path: f"file:{path[0]}"),
        Layer({"seed": 7, "dropout": 2.0}, lambda path: f"--set {path[0]}"),
    ]
    with pytest.raises(ConfigurationError) as caught:
        build(DigitsConfig, layers)
    assert [problem.place for problem in caught.value.problems] == ["file:sede", "--set dropout"]
    layers = [Layer({"epochs": 3, "seed": 1}, str), Layer({"seed": 7}, str)]
    assert build(DigitsConfig, layers) == DigitsConfig(epochs=3, seed=7)


def test_a_configuration_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class Own:
        rate: float = setting(0.1, "how fast", above=0)
        names: tuple[str, ...] = setting(("a",), "which", choices=("a", "b"))
        loud: bool = setting(False, "say more")

        def __post_init__(self):
            check(self)

    assert config_from_dict(Own, {"names": ["b", "a"]}) == Own(names=("b", "a"))
    for values, words in [
        ({"loud": 1}, "loud must be true or false, got 1"),
        ({"names": ["a", "c"]}, r'names\[1\] is "c"; it must be one of a, b'),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            config_from_dict(Own, values)
    assert "loud = false" in commented_toml(Own(), "own")


# ---- TOML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [config_to_toml, commented_toml])
@pytest.mark.parametrize("config", CONFIGS)
def test_configuration_reads_back_exactly(tmp_path, config, write):
    path = tmp_path / "config.toml"
    path.write_text(write(config, "digits"))
    for source in (path, tmp_path):  # a run folder will do
        file = read_config(source)
        assert file.job == "digits" and build(DigitsConfig, [file.layer()]) == config


def test_the_commented_form_says_all_there_is_to_say():
    text = commented_toml(DigitsConfig(limit=None), "digits")
    assert max(map(len, text.splitlines())) <= 100
    words = re.sub(r"\s*\n# ", " ", text)
    for name, (said, _, _) in settings_of(DigitsConfig).items():
        assert said.meaning in words and said.range_text() in words and f"{name} =" in text
    assert "# limit =" in text and "default: not set (all of them)" in text


@given(st.recursive(st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False),
                    st.lists, max_leaves=5))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_values_are_toml(value):
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job = ", "1: this is not TOML (invalid value): job ="),
        ("job = x\n", "1: this is not TOML (invalid value at column 7): job = x"),
        ('job = "digits"\n\n[digits\nseed = 1\n', "3: this is not TOML"),
        ('job = "digits"\n[digits]\nhidden = [1,\n', "3: this is not TOML"),
        ('job = "digits"\n[digits]\nname = "a\n', "3: this is not TOML"),
        (b'job = "digits"\n# \xff\n', "2: this is not UTF-8 text"),
        ("[digits]\nseed = 1\n", '1: it does not name its job; write for example: job = "digits"'),
        ("[digits]\nseed = 1\n[job]\n", "3: it does not name its job"),
        ('job = "digits"\n[digits]\nseed = 1\nepochs = 2\n"seed" = 3\n',
         "5: digits.seed is there twice, first in line 3"),
        ('job = "digits"\n[digits]\nseed = 1\n[digits]\nepochs = 3\n',
         "4: digits is there twice, first in line 2"),
        ('job = "digits"\n\n[other]\nseed = 1\n',
         "3: the table [other] is not known; expected 'job' and the table [digits]"),
        ('job = "digits"\nepochs = 3\n[digits]\n',
         "2: 'epochs' stands outside a table; put it below [digits]"),
        ('job = "digits"\ndigits = 3\n', "2: 'digits' must be a table; write [digits]"),
        ('job = "digits"\n[digits]\n# why\nepoch = 3\n',
         "4: there is no setting 'epoch'; did you mean 'epochs'?"),
        ('job = "digits"\n[digits]\nhidden = [\n  64,  # wide\n  -1,\n]\n',
         "5: hidden[1] is -1; it must be 1 or more"),
        ('job = "digits"\ndigits.epochs = 0\n', "2: epochs is 0; it must be 1 or more"),
        ('job = "digits"\ndigits = { seed = 1, dropout = 1.5 }\n', "2: dropout is 1.5; it must"),
        ('job = "digits"\r\n[digits]\r\nseed = 1.0\r\n', "3: seed must be a whole number, got 1.0"),
        ('job = "digits"\n[digits]\n\n[digits.seed]\nx = 1\n', "4: seed must be a whole number"),
        ('job = "digits"\n[digits]\ntest = 0.5\nvalidation = 0.7\n', "4: validation 0.7 and test"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path, text, expected):
    path = tmp_path / "my.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigurationError) as caught:
        file = read_config(path)
        build(DigitsConfig, [file.layer()], file.problems)
    assert str(caught.value).startswith(f"{path}:{expected}")


def test_all_mistakes_of_a_file_at_once(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(
        'job = "digits"\nlimit = 200\n[digits]\nepoch = 3\nseed = -1\nactivation = "rel"\n'
        "hidden = [\n  0,\n  64,\n  0.5\n]\n"
    )
    file = read_config(path)
    with pytest.raises(ConfigurationError) as caught:
        build(DigitsConfig, [file.layer()], file.problems)
    head, *lines = str(caught.value).split("\n")
    assert head == "6 mistakes in the settings"
    assert [line.split(": ")[0] for line in lines] == [
        f"  {path}:{number}" for number in (2, 4, 5, 6, 8, 10)
    ]


def test_no_file_and_one_beyond_all_bounds(tmp_path):
    (tmp_path / "deep.toml").write_text("job = " + "[" * 5000)
    with pytest.raises(ConfigurationError, match="deep.toml:1: .*it is nested too deeply"):
        read_config(tmp_path / "deep.toml")
    (tmp_path / "long.toml").write_text('job = "digits"\n[digits]\nepochs = ' + "9" * 5000)
    with pytest.raises(ConfigurationError, match="long.toml:3: .*a number has too many digits"):
        read_config(tmp_path / "long.toml")
    (tmp_path / "many.toml").write_text(
        'job = "digits"\n' + "".join(f"k{number} = 1\n" for number in range(500))
    )
    file = read_config(tmp_path / "many.toml")
    with pytest.raises(ConfigurationError, match="… and 480 more$") as caught:
        build(DigitsConfig, [file.layer()], file.problems)
    assert len(caught.value.problems) == 500 and str(caught.value).count("\n") == 21
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        read_config(tmp_path / "none.toml")


# ---- where keys stand ---------------------------------------------------------------------------

BARE = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
NAMES = BARE | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
LEAVES = st.sampled_from(
    ["1", "-2.5e-3", "true", "inf", "1979-05-27 07:32:00", '"a # b"', "'c ] }'", '"\\"[x] = 1"',
     '"""one\n# two\n"three""""', "'''\nfour\n[five]'''", '"""a\\\n  b"""', "''", '""']
)  # fmt: skip
SPACES = st.sampled_from(["", " ", "\n", "  # why, [x] = 1\n", "\n\n\t"])


class Writer:
    """Writes random TOML and notes in which line each key begins."""

    def __init__(self, draw):
        self.draw, self.text, self.lines = draw, "", {}

    def put(self, text):
        self.text += text

    def line(self):
        return self.text.count("\n") + 1

    def key(self, name):
        choices = [f'"{_escaped(name)}"']
        choices += [name] if re.fullmatch("[A-Za-z0-9_-]+", name) else []
        choices += [f"'{name}'"] if all(c.isprintable() and c != "'" for c in name) else []
        self.put(self.draw(st.sampled_from(choices)))

    def value(self, path, depth):
        kind = self.draw(st.sampled_from(["leaf", "leaf", "array", "inline"])) if depth else "leaf"
        if kind == "leaf":
            self.put(self.draw(LEAVES))
        elif kind == "array":
            self.put("[")
            for number in range(self.draw(st.integers(0, 3))):
                self.put(self.draw(SPACES))
                self.lines[(*path, number)] = self.line()
                self.value((*path, number), depth - 1)
                self.put(self.draw(SPACES) + ",")
            self.put(self.draw(SPACES) + "]")
        else:
            self.put("{ ")
            for number, name in enumerate(self.draw(st.lists(NAMES, max_size=2, unique=True))):
                self.put(", " if number else "")
                self.pair(path, name, depth - 1)
            self.put("}")

    def pair(self, table, name, depth):
        path = (*table, name)
        self.lines[path] = self.line()
        self.key(name)
        if self.draw(st.integers(0, 4)) == 0:  # dotted
            self.put(" . ")
            path = (*path, self.draw(NAMES))
            self.lines[path] = self.line()
            self.key(path[-1])
        self.put(self.draw(st.sampled_from(["=", " = ", "\t=  "])))
        self.value(path, depth)

    def document(self):
        tables = self.draw(st.lists(NAMES, max_size=3, unique=True))
        top = self.draw(st.lists(NAMES.filter(lambda n: n not in tables), max_size=2, unique=True))
        self.pairs((), top)
        for name in tables:
            if self.draw(st.booleans()):
                self.lines[(name,)] = self.line()
                self.put("[ ")
                self.key(name)
                self.put(" ]")
                self.pairs((name,), self.draw(st.lists(NAMES, max_size=3, unique=True)), "\n")
                continue
            for number in range(self.draw(st.integers(1, 2))):
                self.lines.setdefault((name,), self.line())
                self.lines[name, number] = self.line()
                self.put("[[")
                self.key(name)
                self.put("]]")
                names = self.draw(st.lists(NAMES, max_size=2, unique=True))
                self.pairs((name, number), names, "\n")

    def pairs(self, table, names, start=""):
        self.put(start)
        for name in names:
            self.put(self.draw(st.sampled_from(["", "  ", "\n# [no] = 'table'\n"])))
            self.pair(table, name, 2)
            self.put(self.draw(st.sampled_from(["\n", " # end\n", "\n\n"])))
        self.put("" if names else "\n")


def _escaped(name):
    return "".join(f"\\U{ord(c):08x}" if not c.isalnum() else c for c in name)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_positions_of_random_documents(data):
    writer = Writer(data.draw)
    writer.document()
    document = tomllib.loads(writer.text)  # the writer writes TOML
    found = find_positions(writer.text)
    assert found.lines == writer.lines and found.twice == []
    for path in found.lines:  # and every path is really there
        value = document
        for part in path:
            value = value[part]


@given(st.text(st.sampled_from("ab.=[]{}\"'#,\n \\1"), max_size=40))
@settings(max_examples=100, deadline=None)
def test_positions_of_what_is_not_toml_end_somewhere(text):
    assert all(1 <= line <= text.count("\n") + 1 for line in find_positions(text).lines.values())


def test_of_looks_around_what_has_no_line():
    found = find_positions("a = 1\n\n[b]\nc = 2\n")
    assert (found.of(("b", "c")), found.of(("b", "d")), found.of(("x",))) == (4, 3, 1)


def test_config_to_dict():
    assert config_to_dict(DigitsConfig(hidden=(1, 2)))["hidden"] == [1, 2]
