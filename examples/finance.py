"""How far may the stock index move tomorrow? Intervals from a network, and what it cannot know.

    gpunn train finance                            # S&P 500, eight years, by a GRU
    gpunn train finance --set network=convolution  # by a temporal convolution
    gpunn train finance --set index=nasdaq
    gpunn predict runs/finance latest              # the day after the end of the data
    gpunn predict runs/finance prices.csv          # or after your own prices

**Data.** Daily prices (high, low, close) of the S&P 500, 1999 to 2018, 5031 days, which ship with
the package arch (NCSA licence); nothing is downloaded. ``--set file=prices.csv`` takes your own: a
CSV with the columns Date, High, Low and Close.

**What can be forecast.** Not the direction: whether tomorrow's return is above or below its median
is close to a toss of a coin, and no forecast of the index is worth much more than its level today.
That is shown with numbers, not hidden. But the *size* of the moves comes in waves: wild days follow
wild days. So the network forecasts five quantiles of tomorrow's return, and is measured by the
pinball loss, the measure that is least for the true quantiles.

**Network.** Of each of the last 21 days it sees the return, the range between high and low, and
where in it the day closed, in units of that day's volatility (the exponential mean of RiskMetrics,
decay 0.94), and that volatility beside a slower mean. A GRU, or causal convolutions of growing
reach, sum them up into five quantiles, in order by construction, in units of today's volatility.

**Walk-forward validation.** The tested eight years are forecast one after the other. Before each
the network goes on training, on all days before it. What scales its inputs comes from the days
before the first tested one; a day's inputs come from that day and those before.

**Compared with** the quantiles of the last 250 and 1000 returns, RiskMetrics with normal quantiles,
GARCH(1,1) with normal errors, and GJR-GARCH(1,1,1) with Student's errors, which knows that falls
excite more than rises: these see closing prices only. And with a linear regression on what the
network sees: the ranges of the last day, week and month, and today's return. All that is fitted is
refitted each year, too, the GARCH models by the package arch.

**Where it does not win.** The GRU beats them all, the regression on ranges by less than one per
cent, GJR-GARCH by about one. The convolutions are no better than either, and their intervals are a
little too narrow. Neither network says more about the direction of the index than its long drift
upwards does.

Sizes and epochs were chosen by the years 2007 to 2010, forecast from 1999 to 2006.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from finance_baselines import (
    autoregression,
    drift_of,
    garch,
    range_regression,
    recent_quantiles,
    riskmetrics,
)

import gpunn
from gpunn import data, nn, optim
from gpunn.nn import functional as F
from gpunn.train import Job, Outcome, Run, Trainer, check, device_setting, setting
from gpunn.train.metrics import interval_coverage
from gpunn.train.plots import new_figure, plot_forecast, plot_quantiles

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MEDIAN = QUANTILES.index(0.5)
DECAY, SLOW = 0.94, 0.99  # of the means of squared returns: RiskMetrics, and a slower one


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the weights, the shuffling and the dropout", low=0)
    device: str = device_setting()
    index: str = setting("sp500", "whose prices", choices=("sp500", "nasdaq"))
    file: str | None = setting(None, "your own prices: a CSV with Date, High, Low and Close",
        unset="those of the index")  # fmt: skip
    network: str = setting("gru", "what sums up the past", choices=("gru", "convolution"))
    window: int = setting(21, "days that the network sees", low=2)
    hidden: int = setting(16, "size of the GRU's state, or channels of the convolutions", low=1)
    dropout: float = setting(0.3, "share of what it sums up that is left out in training",
        low=0, below=1)  # fmt: skip
    test: int = setting(2012, "days at the end that are forecast", low=8)
    parts: int = setting(8, "parts into which they are cut, each with a refit", low=1)
    epochs: int = setting(20, "epochs before the first part", low=1)
    more_epochs: int = setting(4, "epochs before each further part", low=1)
    batch_size: int = setting(64, "days of a training step", low=1)
    learning_rate: float = setting(1e-2, "the peak of the one-cycle schedule", above=0)
    weight_decay: float = setting(0.3, "weight decay of AdamW", low=0)
    garch: bool = setting(True, "compare with GARCH models, which takes the package arch")

    def __post_init__(self) -> None:
        check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is wrong with two settings together, for `check`."""
        if self.parts > self.test:
            yield "parts", f"{self.test} days cannot be cut into {self.parts} parts"


# ---- data --------------------------------------------------------------------------------------


def prices_of(config: Config, file: str | None = None) -> data.Series:
    """Times, high, low and close."""
    file = file or config.file
    if file is not None:
        return data.read_series(file, ("High", "Low", "Close"))
    series = data.load_index_prices(config.index)
    columns = [series.column(name) for name in ("high", "low", "close")]
    return data.Series(series.times, np.stack(columns, axis=1), ("High", "Low", "Close"))


def returns_of(series: data.Series) -> np.ndarray:
    """Of each day but the first the logarithmic return since the day before, in per cent."""
    high, low = series.column("High"), series.column("Low")
    wrong = (series.values <= 0).any(axis=1) | (high < low)
    if wrong.any():
        day = str(series.times[np.argmax(wrong)])[:10]
        raise ValueError(f"{day}: prices must be above 0, and the highest not below the lowest")
    return 100 * np.diff(np.log(series.column("Close")))


def exponential_mean(values: np.ndarray, decay: float) -> np.ndarray:
    """The mean of the values so far, each weighing `decay` times as much as the one after it."""
    found, mean, weight = np.empty(len(values)), 0.0, 0.0
    for day, value in enumerate(values):
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        found[day] = mean / weight
    return found


def volatility_of(returns: np.ndarray, decay: float = DECAY) -> np.ndarray:
    """What is known of each day's volatility at its close, in per cent a day."""
    return np.sqrt(exponential_mean(returns**2, decay) + 1e-4)


def spans_of(series: data.Series) -> np.ndarray:
    """Of each day but the first how far high and low are apart, in per cent."""
    return 100 * np.log(series.column("High")[1:] / series.column("Low")[1:]) + 1e-3


def inputs(series: data.Series) -> np.ndarray:
    """What the network sees of each day but the first, known at its close: (days, 5)."""
    returns, (high, low, close) = returns_of(series), series.values[1:].T
    volatility, span = volatility_of(returns), spans_of(series)
    return np.stack(
        [
            returns / volatility,
            np.log(span / volatility),
            np.clip((2 * close - high - low) / (high - low + 1e-9 * close), -1, 1),
            np.log(volatility / volatility_of(returns, SLOW)),
            np.log(volatility),
        ],
        axis=1,
    )


class Walk:
    """The days as the network sees them, and the parts in which they are forecast.

    Row t of `x` is known at the close of day t; ``target[t]`` is the return of day t in units of
    ``known[t]``, the volatility that was known a day before.
    """

    def __init__(self, config: Config, series: data.Series | None = None):
        series = prices_of(config) if series is None else series
        self.returns, self.spans = returns_of(series), spans_of(series)
        self.times = series.times[1:]
        self.window, days = config.window, len(self.returns)
        self.begin = days - config.test
        if self.begin < 2 * config.window + config.batch_size:
            raise ValueError(
                f"{days} days are too few to forecast the last {config.test}: set test lower"
            )
        x = inputs(series)
        self.scaling = data.Normalizer().fit(x[: self.begin])
        self.x = self.scaling.transform(x).astype(np.float32)
        volatility = volatility_of(self.returns)
        self.known = np.concatenate([volatility[:1], volatility[:-1]])
        self.target = (self.returns / self.known).astype(np.float32)
        self.cuts = np.linspace(self.begin, days, config.parts + 1).astype(int).tolist()

    def days(self, first: int, last: int) -> data.SlidingWindows:
        """The days ``first … last - 1`` as targets, each with the window before it."""
        return data.SlidingWindows(self.x, self.target, window=self.window, first=first, last=last)

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """(number, first day, day after the last one) of each part."""
        for number, (first, last) in enumerate(zip(self.cuts[:-1], self.cuts[1:], strict=True), 1):
            yield number, first, last


# ---- network -----------------------------------------------------------------------------------


class Forecaster(nn.Module):
    """Windows (B, window, 5) -> quantiles of the next return (B, 1, 5), in units of volatility."""

    def __init__(self, config: Config, features: int = 5):
        super().__init__()
        self.kind = config.network
        if config.network == "gru":
            self.past = nn.GRU(features, config.hidden, batch_first=True)
        else:
            self.first = nn.Conv1d(features, config.hidden, 1)
            levels = max(1, int(np.ceil(np.log2((config.window + 1) / 2))))
            self.layers = nn.ModuleList(
                nn.Conv1d(config.hidden, config.hidden, 3, dilation=2**k) for k in range(levels)
            )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, len(QUANTILES))

    def forward(self, x):
        if self.kind == "gru":
            summed = self.past(x)[0][:, -1]
        else:
            z = self.first(x.transpose(1, 2))
            for k, layer in enumerate(self.layers):
                z = z + F.relu(layer(F.pad(z, (2 * 2**k, 0))))  # in front: nothing from later days
            summed = z[:, :, -1]
        out = self.head(self.dropout(summed)).unsqueeze(1)
        steps = F.softplus(out)  # positive steps away from the median: quantiles cannot cross
        middle = out[:, :, MEDIAN : MEDIAN + 1] * 0.1
        low, high = middle - steps[:, :, 1:2], middle + steps[:, :, 3:4]
        return gpunn.cat([low - steps[:, :, :1], low, middle, high, high + steps[:, :, 4:]], 2)


def train(run: Run) -> None:
    config = run.config
    walk, model = Walk(config), Forecaster(config)
    for number, first, _ in walk.parts():
        days = walk.days(0, first)
        epochs = config.epochs if number == 1 else config.more_epochs
        peak = config.learning_rate * (1 if number == 1 else 0.3)
        steps = -(-len(days) // config.batch_size) * epochs
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
        run.say(f"part {number}: {len(days)} days before {str(walk.times[first])[:10]}")
        run.fit(trainer, days, name=f"part-{number}", epochs=epochs, batch_size=config.batch_size)
        run.save(f"part-{number}", model)


# ---- measuring ---------------------------------------------------------------------------------


def forecast(run: Run, walk: Walk, number: int, windows: np.ndarray) -> np.ndarray:
    """Quantiles (n, 5) of the next return after each window, in units of volatility."""
    model = run.load(f"part-{number}", into=Forecaster(run.config))
    trainer = Trainer(model, nn.QuantileLoss(QUANTILES), optim.AdamW, device=run.device)
    return trainer.predict(windows)[:, 0].astype(np.float64)


def evaluate(run: Run) -> Outcome:
    walk = Walk(run.config)
    parts, levels = {"network": []}, []
    for number, first, last in walk.parts():
        units = forecast(run, walk, number, walk.days(first, last).whole()[0])
        parts["network"].append(units * walk.known[first:last, None])
        for name, quantiles in baselines(run.config, walk, first, last).items():
            parts.setdefault(name, []).append(quantiles)
        levels.append((autoregression(walk, first, last), drift_of(walk, first, last)))
    found = {name: np.concatenate(quantiles) for name, quantiles in parts.items()}
    returns, times = walk.returns[walk.begin :], walk.times[walk.begin :]
    losses = {name: losses_of(quantiles, returns) for name, quantiles in found.items()}
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    value = means.pop("network")
    network = found["network"]
    run.figure("forecast", lambda: forecast_figure(times, returns, network))
    run.figure("quantiles", lambda: plot_quantiles(QUANTILES, found, returns))
    run.figure("losses", lambda: loss_figure(times, losses))
    return Outcome(
        "pinball loss of five quantiles of the return, a day ahead",
        value,
        dict(sorted(means.items(), key=lambda item: item[1])),
        samples=len(returns),
        what="days",
        higher_is_better=False,
        unit="%",
        more={
            **{f"coverage of the 90 % interval, {name}": interval_coverage(quantiles, returns)
               for name, quantiles in found.items()},
            "width of the 90 % interval, %": float(np.mean(network[:, -1] - network[:, 0])),
            **level_errors(network[:, MEDIAN], *np.concatenate(levels, axis=1), returns),
        },
        notes=notes(losses, network[:, MEDIAN], returns),
    )  # fmt: skip


def baselines(config: Config, walk: Walk, first: int, last: int) -> dict[str, np.ndarray]:
    """Quantiles of the returns of the days ``first … last - 1`` by simpler models."""
    found = {"RiskMetrics": riskmetrics(walk, first, last, QUANTILES)}
    if walk.begin >= 100:  # days enough before the first part
        found["regression on ranges"] = range_regression(walk, first, last, QUANTILES)
    for days in (250, 1000):
        if walk.begin >= days:
            found[f"last {days} returns"] = recent_quantiles(walk, first, last, QUANTILES, days)
    if config.garch:
        found["GARCH(1,1)"] = garch(walk, first, last, QUANTILES, p=1, q=1)
        found["GJR-GARCH, Student's errors"] = garch(
            walk, first, last, QUANTILES, p=1, o=1, q=1, dist="t"
        )
    return found


def losses_of(quantiles: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """The pinball loss of each day, the mean of the five quantiles."""
    above = returns[:, None] - quantiles
    return np.maximum(np.array(QUANTILES) * above, (np.array(QUANTILES) - 1) * above).mean(axis=1)


def level_errors(median, autoregressive, drift, returns) -> dict[str, float]:
    """Mean absolute errors of forecasts of tomorrow's level, in per cent of it."""
    return {
        f"error of the level: {name}, %": float(np.abs(returns - forecast).mean())
        for name, forecast in {
            "the network's median": median,
            "linear autoregression of 5 days": autoregressive,
            "today's and the median return so far": drift,
            "today's (persistence)": np.zeros(len(returns)),
        }.items()
    }


def notes(losses: dict[str, np.ndarray], median: np.ndarray, returns: np.ndarray) -> list[str]:
    """What the numbers say, and what they do not."""
    others = {name: loss for name, loss in losses.items() if name != "network"}
    best = min(others, key=lambda name: others[name].mean())
    right, up = np.mean((median > 0) == (returns > 0)), np.mean(returns > 0)
    level = difference(np.abs(returns - median), np.abs(returns))
    return [
        f"the network's pinball loss is {difference(losses['network'], others[best])} that of "
        f"{best}",
        f"its median as a forecast of tomorrow's level has an error {level} that of today's level",
        f"the direction: the sign of the median is right on {right:.1%} of the days, always saying "
        f"up on {up:.1%}",
    ]


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """How two losses of the same days differ in the mean, and how sure that is."""
    gain = theirs - ours
    error = gain.std() / np.sqrt(len(gain))
    sure = "more than" if abs(gain.mean()) > 2 * error else "not more than"
    word = "below" if gain.mean() > 0 else "above"
    return f"{abs(gain.mean()):.4f} % ({sure} two standard errors of {error:.4f} %) {word}"


def forecast_figure(times: np.ndarray, returns: np.ndarray, quantiles: np.ndarray):
    """The intervals of the last 250 days, each made the day before, and what came."""
    last = slice(-250, None)
    return plot_forecast(
        times[last], returns[last], times[last], quantiles[last, MEDIAN], quantiles[last, 0],
        quantiles[last, -1], xlabel="time", ylabel="return of a day, %",
        title="Each day's interval, forecast the day before",
    )  # fmt: skip


def loss_figure(times: np.ndarray, losses: dict[str, np.ndarray]):
    """By how much each model's loss differs from RiskMetrics', added up over time."""
    figure = new_figure(10, 4.4)
    axes = figure.subplots()
    for name, loss in losses.items():
        style = {"lw": 2.4} if name == "network" else {"lw": 1.3, "ls": "--"}
        axes.plot(times, np.cumsum(losses["RiskMetrics"] - loss), label=name, **style)
    axes.set(xlabel="time", ylabel="saved loss so far, %")
    axes.set_title("Pinball loss saved over RiskMetrics: the higher the better", fontweight="bold")
    axes.grid(True, color="#dddddd", lw=0.7)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def predict(run: Run, what: str) -> Iterator[dict]:
    walk = Walk(run.config)
    series = prices_of(run.config, None if what == "latest" else what)
    if len(series) <= run.config.window:
        raise ValueError(
            f"{what} has {len(series)} days; a forecast needs more than {run.config.window}, and "
            "some 250 for a good estimate of the volatility"
        )
    x = walk.scaling.transform(inputs(series)[-run.config.window :]).astype(np.float32)
    units = forecast(run, walk, run.config.parts, x[None])[0]
    returns = units * volatility_of(returns_of(series))[-1]
    for quantile, value in zip(QUANTILES, returns, strict=True):
        yield {
            "after": str(series.times[-1])[:10],
            "quantile": quantile,
            "return in %": round(float(value), 3) + 0.0,
            "level": round(float(series.column("Close")[-1] * np.exp(value / 100)), 2),
        }


JOB = Job(
    name="finance",
    title="How far the stock index may move tomorrow",
    use="finance",
    data="5031 days of the S&P 500 or the NASDAQ Composite, 1999 to 2018 (arch, NCSA licence), or "
    "your own prices",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes='"latest", or a CSV with Date, High, Low and Close of the last days, 250 at best',
    variants={"GRU": {}, "temporal convolution": {"network": "convolution"}},
    quick={
        "test": 250,
        "parts": 1,
        "epochs": 1,
        "hidden": 4,
        "window": 8,
        "batch_size": 256,
        "garch": False,
    },  # fmt: skip
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "finance", *sys.argv[1:]]))
