"""`Job`: a whole use of a neural network in one script, for `gpunn train NAME`.

A script defines a configuration, how to train and how to measure, and puts them together::

    JOB = Job(name="waves", title="…", use="…", data="…", config=Config, train=train,
              evaluate=evaluate)

`gpunn train waves` then makes a run folder, calls ``train(run)``, which trains and saves, and
``evaluate(run)``, which loads what was saved, measures it on held-out data beside a baseline and
draws. `gpunn evaluate` calls the second alone, `gpunn predict` calls ``predict``. What the run
folder holds, how a run is continued, and what is printed are the same for all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpunn.train.run import Run


@dataclass(frozen=True)
class Outcome:
    """What a job measured on data that its network never saw.

    Attributes
    ----------
    metric : what was measured, in words: "test accuracy", "word error rate"
    value : of the network
    baselines : the same measured of what is honest to compare with, by name, the strongest first
    samples : how many held-out samples (images, sentences, days, games …) it was measured on
    what : what a sample is, in the plural
    higher_is_better : else lower is
    unit : of value and baselines, such as "°C"; empty for a share or a ratio
    more : further numbers by name; NaN or None for one that is not defined
    notes : sentences that belong to the numbers, such as where the network does not win

    Numbers of NumPy become Python's. ValueError for a value or a baseline that is not finite, and
    without a baseline or samples.
    """

    metric: str
    value: float
    baselines: Mapping[str, float]
    samples: int
    what: str = "samples"
    higher_is_better: bool = True
    unit: str = ""
    more: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        def become(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        become("value", float(self.value))
        become("samples", int(self.samples))
        become("higher_is_better", bool(self.higher_is_better))
        become("baselines", {str(name): float(one) for name, one in self.baselines.items()})
        more = {str(name): math.nan if one is None else one for name, one in self.more.items()}
        become("more", {name: float(one) for name, one in more.items()})
        become("notes", [self.notes] if isinstance(self.notes, str) else list(self.notes))
        if not self.baselines or self.samples < 1:
            raise ValueError(f"{self.metric}: an outcome needs a baseline and samples")
        for name, number in {self.metric: self.value, **self.baselines}.items():
            if not math.isfinite(number):
                raise ValueError(f"{name} is {number}; the outcome cannot be reported")

    @property
    def wins(self) -> bool:
        """Whether its number is better than that of every baseline; by how little, it may be."""
        sign = 1 if self.higher_is_better else -1
        return all(sign * (self.value - other) > 0 for other in self.baselines.values())


@dataclass(frozen=True)
class Job:
    """A use of a neural network: its data, its configuration, how it is trained and measured.

    Attributes
    ----------
    name : for the command line; that of the script
    title : for people, "Translation of a program's texts, English to French"
    use : the row of the gallery, "translation"
    data : what the data are, where they come from and under which licence, in a line
    config : a frozen dataclass of fields made by `setting`; it has ``seed`` and ``device``
    train : trains on ``run.config`` and saves what `evaluate` needs: see `Run`
    evaluate : run -> `Outcome`, from what was saved alone
    predict : (run, data) -> an iterator of dictionaries (the rows of a table) or of texts, which
        are printed as they come; `data` is what stands on the command line. None: there is nothing
        to predict from a command line
    takes : what `data` may be, for messages: "a text to begin with"
    variants : changes of the configuration that the gallery shows beside each other, by name
    quick : changes of the configuration with which all steps are made, but few; for tests

    TypeError if `config` is no dataclass with the fields ``seed`` and ``device``; ValueError for a
    name of other characters than letters, digits, "_" and "-", and for no variants.
    """

    name: str
    title: str
    use: str
    data: str
    config: type
    train: Callable[[Run], None]
    evaluate: Callable[[Run], Outcome]
    predict: Callable[[Run, str], Iterator[dict[str, Any] | str]] | None = None
    takes: str = ""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    quick: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fields = {one.name for one in dataclasses.fields(self.config)}
        lost = [name for name in ("seed", "device") if name not in fields]
        if lost:
            raise TypeError(f"job {self.name}: its config has no field {' and no '.join(lost)}")
        if not re.fullmatch("[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"a job's name is of letters, digits, _ and -, not {self.name!r}")
        if not self.variants:
            raise ValueError(f"job {self.name}: variants is empty; leave it out")

    def configure(self, base: Any = None, **changes: Any) -> Any:
        """A configuration: `base` or the defaults, with those `changes` that are not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(base or self.config(), **given)
