"""Tomorrow's weather from the last days: forecasts with intervals, hour by hour or day by day.

    gpunn train weather                            # the temperature of the next 24 hours, by a GRU
    gpunn train weather --set network=convolution  # by a temporal convolution
    gpunn train weather --set data=days            # the warmest hour of the next 7 days
    gpunn predict runs/weather latest              # what comes after the end of the data
    gpunn predict runs/weather observed.csv        # or after your own observations

**Data.** *hours*: a typical year of Greensboro, North Carolina, in the format TMY3: 8760 observed
hours, each month that of another real year (package pvlib, public domain); no window crosses a seam
between two months. *days*: the weather of Seattle, 2012 to 2015, 1461 days (package vega_datasets,
public domain). *ett*: your own copy of ETTh1.csv or its like (``--set data=ett --set file=…``): the
oil temperature of a transformer, with the usual 12 + 4 months before the 4 that are forecast.

**Walk-forward validation.** What is tested lies at the end of the data and is cut into parts. The
network trains on all that lies before the first part and forecasts it; then that part joins the
training data, the network goes on training, and forecasts the next: as in use, it has seen what
lies before a forecast and nothing after it. (The months of the hours are of different years, 1980
to 2003, so "before" there is the order within the typical year.)

**Network.** It sees temperature, humidity, pressure, wind and clouds of the last three days (of
four weeks, for days), less their mean level, which it is told besides: so a warm day in July is
like one in March. A GRU, or causal convolutions of growing reach, sum them up; added are a linear
map of the last day and yesterday's values at the same hours. It gives five quantiles of each hour,
which are in order by construction, and learns them by the pinball loss.

**Compared with** the last value (persistence), yesterday's at the same hour, the mean of that hour
or day of the year, a linear autoregression, and linear regression on all that the network sees.

**Where it does not win.** Over 24 hours the regression on all inputs, a few lines of NumPy, is as
good: its mean error is the same, and in the first hours less. What the GRU does better by a per
cent or two are the quantiles (the pinball loss), though its intervals of the hours are a little too
narrow and its forecasts on the whole too warm. The convolutions do neither better. For the days the
GRU wins by some two per cent: three years are few days.

Sizes, epochs and the penalties of the linear regressions were chosen by data before the first part:
in hours by May and June, forecast from January to April, in days by 2014.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from weather_baselines import linear_quantiles, simple_forecasts

import gpunn
from gpunn import data, nn, optim
from gpunn.nn import functional as F
from gpunn.train import Job, Outcome, Run, Trainer, check, device_setting, setting
from gpunn.train.metrics import interval_coverage, mean_absolute_error, pinball_loss
from gpunn.train.plots import new_figure, plot_forecast, plot_quantiles

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MEDIAN = QUANTILES.index(0.5)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the weights, the shuffling and the dropout", low=0)
    device: str = device_setting()
    data: str = setting("hours", "what is forecast: the next 24 hours of Greensboro, the next 7 "
        "days of Seattle, or the next day of an ETT file",
        choices=("hours", "days", "ett"))  # fmt: skip
    file: str | None = setting(None, "your own file: ETTh1.csv and its like for ett, a TMY3 file "
        "of another station for hours", unset="the data of a package")  # fmt: skip
    network: str = setting("gru", "what sums up the past", choices=("gru", "convolution"))
    hidden: int = setting(24, "size of the GRU's state, or channels of the convolutions", low=1)
    dropout: float = setting(0.3, "share of what the network sums up that is left out in training",
        low=0, below=1)  # fmt: skip
    parts: int = setting(6, "parts into which the tested data are cut", low=1)
    epochs: int = setting(6, "epochs before the first part", low=1)
    more_epochs: int = setting(2, "epochs before each further part", low=1)
    batch_size: int = setting(64, "windows of a training step", low=1)
    learning_rate: float = setting(5e-3, "the peak of the one-cycle schedule", above=0)
    weight_decay: float = setting(0.3, "weight decay of AdamW", low=0)

    def __post_init__(self) -> None:
        check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is wrong with two settings together, for `check`."""
        if self.data == "ett" and self.file is None:
            yield "file", "ett needs a file: --set file=ETTh1.csv"
        if self.data == "days" and self.file is not None:
            yield "file", "days are those of Seattle; a file goes with hours or ett"


# ---- data --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What is forecast from what. Lengths are in steps: hours, days, quarters of an hour."""

    target: str
    columns: tuple[str, ...]  # of the series, the target first
    title: str
    step: str
    period: int  # after so many steps the same time of the day comes again; 1 for days
    window: int  # of the past that the network sees
    horizon: int  # of the future
    recent: int  # steps of the past that the linear map sees
    level: int  # steps whose mean is the level
    penalty: float  # of the linear regression on all inputs, on the weights of the others


HOURS = Task("temperature", ("temperature", "dew point", "humidity", "pressure", "cloud cover",
    "irradiance", "wind speed", "wind direction"), "Temperature", "hour",
    period=24, window=72, horizon=24, recent=24, level=24, penalty=1.0)  # fmt: skip
DAYS = Task("temp_max", ("temp_max", "temp_min", "precipitation", "wind"),
    "Warmest hour of the day", "day",
    period=1, window=28, horizon=7, recent=7, level=28, penalty=0.1)  # fmt: skip
ETT = ("OT", "HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL")


def load(config: Config) -> tuple[Task, data.Series, int, int]:
    """The task, the series, and the rows at which the test begins and ends."""
    if config.data == "hours":
        series = data.load_tmy3(config.file)
        return HOURS, series, len(series) * 181 // 365, len(series)  # from 1 July
    if config.data == "days":
        series = data.load_seattle_weather()
        begin = int(np.searchsorted(series.times, np.datetime64("2015-01-01")))
        return DAYS, series, begin, len(series)
    series, (_, begin, end) = data.load_ett(config.file)
    day = 86400 // int((series.times[1] - series.times[0]).astype(int))
    step = "hour" if day == 24 else "quarter of an hour"
    task = Task("OT", ETT, "Oil temperature", step, day, 3 * day, day, day, day, 1.0)
    return task, series, begin, end


def inputs(task: Task, series: data.Series) -> np.ndarray:
    """What is known at each step, (T, columns): measurements, the target first, then the clock."""
    columns = {name: series.column(name) for name in task.columns}
    if "wind direction" in columns:  # 359° is next to 0°
        angle, speed = np.deg2rad(columns.pop("wind direction")), columns["wind speed"]
        columns |= {"east": speed * np.sin(angle), "north": speed * np.cos(angle)}
    if "precipitation" in columns:
        if (columns["precipitation"] < 0).any():
            raise ValueError("precipitation cannot be below 0; leave out days that lack it")
        columns["precipitation"] = np.sqrt(columns["precipitation"])  # less skewed
    return np.stack([*columns.values(), *clock(task, series.times)], axis=1)


def clock(task: Task, times: np.ndarray) -> list[np.ndarray]:
    """The time of the day, for days that of the year, as two waves."""
    unit, length = ("D", 86400.0) if task.period > 1 else ("Y", 365.25 * 86400.0)
    angle = 2 * np.pi * (times - times.astype(f"datetime64[{unit}]")).astype(float) / length
    return [wave(k * angle) for k in (1, 2) for wave in (np.sin, np.cos)]


@dataclass(frozen=True)
class Part:
    """One step of the walk: windows to train on, and those whose future is tested."""

    train: data.SlidingWindows
    test: data.SlidingWindows


class Walk:
    """The series as the network sees it, and the parts in which it is forecast.

    What scales it are the mean and the deviation of the rows before the first part.
    """

    def __init__(self, config: Config):
        self.task, self.series, begin, end = load(config)
        x = inputs(self.task, self.series)
        self.scaling = data.Normalizer().fit(x[:begin])
        self.x = self.scaling.transform(x).astype(np.float32)
        self.raw = self.series.column(self.task.target)
        if (end - begin) // config.parts < self.task.horizon:
            raise ValueError(
                f"{end - begin} {self.task.step}s cannot be cut into {config.parts} parts of "
                f"{self.task.horizon} or more, the length of a forecast: set parts lower"
            )
        cuts = np.linspace(begin, end, config.parts + 1).astype(int)
        self.parts = [
            Part(self._windows(last=cut), self._windows(first=cut, last=following))
            for cut, following in zip(cuts[:-1], cuts[1:], strict=True)
        ]
        self.begin = begin

    def _windows(self, **rows: int) -> data.SlidingWindows:
        lengths = {"window": self.task.window, "horizon": self.task.horizon}
        return data.SlidingWindows(self.x, self.x[:, 0], runs=self.series.runs(), **lengths, **rows)

    def degrees(self, scaled: np.ndarray) -> np.ndarray:
        """Scaled values of the target in its unit."""
        return scaled.astype(np.float64) * self.scaling.scale[0] + self.scaling.mean[0]

    def model(self, config: Config) -> "Forecaster":
        return Forecaster(self.task, self.x.shape[1], config)


# ---- network -----------------------------------------------------------------------------------


class CausalConvolutions(nn.Module):
    """(B, T, C) -> (B, hidden), said at the last step; each layer sees twice as far as the last."""

    def __init__(self, features: int, hidden: int, window: int):
        super().__init__()
        self.first = nn.Conv1d(features, hidden, 1)
        levels = max(1, int(np.ceil(np.log2((window + 1) / 2))))  # reach of 2^(levels+1) - 1 steps
        self.layers = nn.ModuleList(
            nn.Conv1d(hidden, hidden, 3, dilation=2**level) for level in range(levels)
        )

    def forward(self, x):
        z = self.first(x.transpose(1, 2))
        for level, layer in enumerate(self.layers):
            z = z + F.relu(layer(F.pad(z, (2 * 2**level, 0))))  # in front: nothing from later
        return z[:, :, -1]


class Forecaster(nn.Module):
    """Windows (B, window, columns), the target first -> its quantiles (B, horizon, 5)."""

    def __init__(self, task: Task, columns: int, config: Config):
        super().__init__()
        self.task, self.measured, self.kind = task, columns - 4, config.network  # 4 of the clock
        features = columns + self.measured
        if config.network == "gru":
            self.past = nn.GRU(features, config.hidden, batch_first=True)
        else:
            self.past = CausalConvolutions(features, config.hidden, task.window)
        self.dropout, self.thin = nn.Dropout(config.dropout), nn.Dropout(0.3)
        self.head = nn.Linear(config.hidden, task.horizon * len(QUANTILES))
        self.linear = nn.Linear(task.recent * features, task.horizon)
        fading = np.exp(-np.arange(task.horizon) / (task.horizon / 4)).astype(np.float32)
        self.carry = nn.Parameter(gpunn.tensor(fading))

    def forward(self, x):
        task, n = self.task, self.measured
        level = x[:, -task.level :, :n].mean(1, keepdim=True)
        seen = gpunn.cat([x[:, :, :n] - level, x[:, :, n:], level.expand(-1, task.window, -1)], 2)
        summed = self.past(seen)[0][:, -1] if self.kind == "gru" else self.past(seen)
        out = self.head(self.dropout(summed)).reshape(-1, task.horizon, len(QUANTILES))
        recent = self.thin(seen[:, -task.recent :].reshape(x.shape[0], -1) * 0.1)
        # Yesterday's course again, or for days the level; and today's distance from it, fading.
        last, days = x[:, -1:, 0], task.period == 1
        course = level[:, :, 0] if days else x[:, -task.period :, 0][:, : task.horizon]
        before = level[:, :, 0] if days else x[:, -1 - task.period : -task.period, 0]
        middle = course + (last - before) * self.carry + self.linear(recent)
        return in_order(middle.unsqueeze(2) + out[:, :, MEDIAN : MEDIAN + 1], out)


def in_order(middle, out):
    """Quantiles that cannot cross: the median, and positive steps away from it on either side."""
    steps = F.softplus(out)
    low, high = middle - steps[:, :, 1:2], middle + steps[:, :, 3:4]
    return gpunn.cat([low - steps[:, :, :1], low, middle, high, high + steps[:, :, 4:]], 2)


# ---- training ----------------------------------------------------------------------------------


def train(run: Run) -> None:
    config = run.config
    walk = Walk(config)
    model = walk.model(config)
    for number, part in enumerate(walk.parts, 1):
        epochs = config.epochs if number == 1 else config.more_epochs
        peak = config.learning_rate * (1 if number == 1 else 0.3)
        steps = -(-len(part.train) // config.batch_size) * epochs
        decay = config.weight_decay
        optimizer = optim.AdamW(model.parameters(), lr=peak, weight_decay=decay)
        trainer = Trainer(
            model,
            nn.QuantileLoss(QUANTILES),
            optimizer,
            scheduler=optim.lr_scheduler.OneCycleLR(optimizer, peak, steps),
            device=run.device,
            seed=config.seed,
        )
        run.say(f"part {number} of {len(walk.parts)}: {len(part.train)} windows before it")
        run.fit(trainer, part.train, name=f"part-{number}", epochs=epochs,
            batch_size=config.batch_size)  # fmt: skip
        run.save(f"part-{number}", model)


# ---- measuring ---------------------------------------------------------------------------------


def evaluate(run: Run) -> Outcome:
    walk = Walk(run.config)
    task, found = walk.task, {"network": [], "observed": [], "rows": [], "linear": []}
    for number, part in enumerate(walk.parts, 1):
        x, y = part.test.whole()
        found["network"].append(forecasts(run, walk, number, x))
        found["observed"].append(walk.degrees(y))
        found["rows"].append(part.test.starts + task.window)
        found["linear"].append(linear_quantiles(walk, part, QUANTILES))
        for name, forecast in simple_forecasts(walk, part).items():
            found.setdefault(name, []).append(forecast)
    found = {name: np.concatenate(pieces) for name, pieces in found.items()}
    network, truth, rows, linear = (
        found.pop(name) for name in ("network", "observed", "rows", "linear")
    )
    median = network[:, :, MEDIAN]
    error = mean_absolute_error(median, truth)
    baselines = {name: mean_absolute_error(other, truth) for name, other in found.items()}
    models = {
        name: quantiles.reshape(-1, len(QUANTILES))
        for name, quantiles in {"network": network, "linear regression": linear}.items()
    }
    run.figure("forecast", lambda: forecast_figure(walk, network, rows))
    run.figure("errors", lambda: error_figure(task, {"network": median, **found}, truth))
    run.figure("quantiles", lambda: plot_quantiles(QUANTILES, models, truth.reshape(-1)))
    best, least = min(baselines.items(), key=lambda item: item[1])
    verdict = (
        f"{1 - error / least:.1%} less than"
        if error < least
        else (f"{error / least - 1:.1%} more than")
    )
    return Outcome(
        "mean absolute error of the median",
        error,
        dict(sorted(baselines.items(), key=lambda item: item[1])),
        samples=len(truth),
        what=f"forecasts of {task.horizon} {task.step}s",
        higher_is_better=False,
        unit="°C",
        more={
            **interval_measures(models, truth.reshape(-1)),
            f"error of the first {task.step}, °C": mean_absolute_error(median[:, 0], truth[:, 0]),
            f"error of the last {task.step}, °C": mean_absolute_error(median[:, -1], truth[:, -1]),
        },
        notes=[
            f"{task.title}, next {task.horizon} {task.step}s: the network's error is {verdict} "
            f"that of the best of the others, {best}",
            *(f"the 90 % interval of the {name} holds "
              f"{interval_coverage(quantiles, truth.reshape(-1)):.0%} of what came"
              for name, quantiles in models.items()),
        ],
    )  # fmt: skip


def forecasts(run: Run, walk: Walk, number: int, windows: np.ndarray) -> np.ndarray:
    """Quantiles (n, horizon, 5) in °C after each window, by the network of a part."""
    model = run.load(f"part-{number}", into=walk.model(run.config))
    trainer = Trainer(model, nn.QuantileLoss(QUANTILES), optim.AdamW, device=run.device)
    return walk.degrees(trainer.predict(windows))


def interval_measures(models: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, float]:
    """How good the intervals of each model are: coverage, width, and both in one, pinball loss."""
    more = {}
    for name, quantiles in models.items():
        more[f"coverage of the 90 % interval, {name}"] = interval_coverage(quantiles, truth)
        more[f"width of it, °C, {name}"] = float(np.mean(quantiles[:, -1] - quantiles[:, 0]))
        more[f"pinball loss, °C, {name}"] = pinball_loss(quantiles, truth, quantile=QUANTILES)
    return more


def forecast_figure(walk: Walk, forecast: np.ndarray, rows: np.ndarray):
    """Forecasts one after the other, each made where the one before ends, and what came."""
    task = walk.task
    chain = [len(rows) // 2]  # from the middle of the tested time
    while len(chain) < 7 and chain[-1] + task.horizon < len(rows):
        following = chain[-1] + task.horizon
        if rows[following] - rows[chain[-1]] != task.horizon:  # a seam
            break
        chain.append(following)
    first, last = rows[chain[0]], rows[chain[-1]] + task.horizon
    seen, times = slice(first - task.window, last), walk.series.times
    made = np.concatenate([forecast[place] for place in chain])
    return plot_forecast(
        times[seen], walk.raw[seen], times[first:last], made[:, MEDIAN], made[:, 0], made[:, -1],
        xlabel="time", ylabel="°C",
        title=f"{task.title}: {len(chain)} forecasts of {task.horizon} {task.step}s each",
    )  # fmt: skip


def error_figure(task: Task, forecasts: dict[str, np.ndarray], truth: np.ndarray):
    """The mean absolute error by how far ahead."""
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    ahead = np.arange(1, task.horizon + 1)
    for name, forecast in forecasts.items():
        style = {"lw": 2.6} if name == "network" else {"lw": 1.4, "ls": "--"}
        axes.plot(ahead, np.abs(forecast - truth).mean(0), label=name, **style)
    axes.set(xlabel=f"{task.step}s ahead", ylabel="mean absolute error, °C", ylim=(0, None))
    axes.set_title("Error by how far ahead", fontweight="bold")
    axes.grid(True, color="#dddddd", lw=0.7)
    axes.legend(fontsize=9)
    return figure


def step_of(series: data.Series) -> np.timedelta64:
    """The usual time from one row to the next."""
    return np.median(np.diff(series.times).astype(np.int64)).astype("timedelta64[s]")


def predict(run: Run, what: str) -> Iterator[dict]:
    walk = Walk(run.config)
    task, series = walk.task, walk.series
    if what != "latest":
        series = data.read_series(what, task.columns)
    step = step_of(walk.series)
    if len(series) > 1 and step_of(series) != step:
        raise ValueError(
            f"{what}: its rows are {step_of(series)} apart; the network was trained on {step}"
        )
    now = series.runs() == series.runs()[-1]
    if now.sum() < task.window:
        raise ValueError(
            f"{what}: its last rows without a gap are {now.sum()}; a forecast needs {task.window} "
            f"{task.step}s, with the columns {', '.join(task.columns)}"
        )
    x = walk.scaling.transform(inputs(task, series)[-task.window :]).astype(np.float32)
    digits = 16 if task.period > 1 else 10  # of the time: to the minute, or the day
    for ahead, row in enumerate(forecasts(run, walk, len(walk.parts), x[None])[0], 1):
        time = str(series.times[-1] + ahead * step).replace("T", " ")[:digits]
        values = zip(QUANTILES, row.tolist(), strict=True)
        yield {"time": time, **{f"{level:g}": round(value, 2) for level, value in values}}


JOB = Job(
    name="weather",
    title="Temperature of the coming hours and days",
    use="weather",
    data="8760 observed hours of Greensboro (pvlib, public domain), 1461 days of Seattle "
    "(vega_datasets, public domain), or an ETT file",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes='"latest", or a CSV of the last days with a time and the columns of the data',
    variants={
        "24 hours, GRU": {},
        "24 hours, temporal convolution": {"network": "convolution"},
        "7 days, GRU": {"data": "days", "hidden": 8, "epochs": 15, "more_epochs": 4},
    },
    quick={"data": "days", "parts": 1, "epochs": 1, "more_epochs": 1, "hidden": 8},
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "weather", *sys.argv[1:]]))
