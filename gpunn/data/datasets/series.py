"""Series of numbers in time: prices, weather, and readers of TMY3, ETT and any table with dates."""

from __future__ import annotations

import datetime
import gzip
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpunn.data.datasets.packaged import package_file
from gpunn.data.files import csv_rows
from gpunn.errors import FileFormatError

_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%m/%d/%Y",
    "%m/%d/%Y %H:%M",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M",
)
_MISSING = ("", ".", "na", "nan", "null")
_PRICES = {"sp500": "sp500.csv.gz", "nasdaq": "nasdaq.csv.gz", "wti": "wti.csv.gz"}
_ETT = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
_HOURS = [f"{hour:02}:00" for hour in range(1, 25)]
_TMY3 = {
    "Dry-bulb (C)": "temperature",
    "Dew-point (C)": "dew point",
    "RHum (%)": "humidity",
    "Pressure (mbar)": "pressure",
    "Wspd (m/s)": "wind speed",
    "Wdir (degrees)": "wind direction",
    "TotCld (tenths)": "cloud cover",
    "GHI (W/m^2)": "irradiance",
}


@dataclass(frozen=True)
class Series:
    """Numbers in time: a row a time, a column a quantity.

    Attributes
    ----------
    times : datetime64[s] (T,)
    values : float64 (T, C)
    names : of the columns
    """

    times: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.times)

    def column(self, name: str) -> np.ndarray:
        """The values of a column, (T,). KeyError, naming those there are, for another name."""
        if name not in self.names:
            raise KeyError(f"there is no column {name!r}; there are {', '.join(self.names)}")
        return self.values[:, self.names.index(name)]

    def runs(self) -> np.ndarray:
        """int64 (T,), the number of the run that a row belongs to: a new one begins wherever the
        time since the row before is not the usual one (the median)."""
        if len(self) < 2:
            return np.zeros(len(self), np.int64)
        steps = np.diff(self.times).astype(np.int64)
        return np.concatenate([[0], np.cumsum(steps != np.median(steps))])


def read_series(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    time: str | None = None,
    drop_missing: bool = False,
) -> Series:
    """Read a table of numbers in time: CSV with a header, plain or with the suffix .gz.

    Parameters
    ----------
    columns : names of the columns wanted, in the order wanted; None takes all but the time, which
        then must all be numbers
    time : the column of the times, by default the first. Years first (2015-03-01, 2015/03/01) or
        as in the United States (3/1/2015), and after it maybe the hour (14:00, 14:00:00)
    drop_missing : leave out rows where a wanted number is missing (empty, ".", "NA" or "nan");
        else such a row is an error

    FileNotFoundError; FileFormatError, naming the line, for a file that is damaged or no such
    table, a cell that is no finite number, and times that do not increase.
    """
    path = Path(path)
    rows = _rows(path)
    header = [name.strip() for name in next(rows)[1]]
    first = header[0] if time is None else time
    wanted = [name for name in header if name != first] if columns is None else list(columns)
    lacking = [name for name in (first, *wanted) if name not in header]
    if lacking or not wanted:
        raise FileFormatError(
            f"{path}, line 1: there is no column {', '.join(lacking) or 'of numbers'}; "
            f"the header is {', '.join(header)}"
        )
    at, places = header.index(first), [header.index(name) for name in wanted]
    times: list[datetime.datetime] = []
    values, parse = [], _TimeParser()
    for line, row in rows:
        place = f"{path}, line {line}"
        if len(row) != len(header):
            raise FileFormatError(f"{place}: {len(row)} cells; the header has {len(header)}")
        numbers = [_number(row[k], f"{place}, {header[k]}", drop_missing) for k in places]
        if any(map(math.isnan, numbers)):
            continue
        moment = parse(row[at].strip(), place)
        if times and moment <= times[-1]:
            raise FileFormatError(
                f"{place}: {row[at]} is not later than the row before; sort the rows by time"
            )
        times.append(moment)
        values.append(numbers)
    if not times:
        raise FileFormatError(f"{path} has a header and no rows")
    return Series(_stamps(times), np.array(values), tuple(wanted))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that is not empty, the header first."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    data = path.read_bytes()
    try:
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(f"{path} is damaged, it cannot be unpacked: {error}") from None
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}, byte {error.start}: this is not a text file") from None
    empty = True
    for row in csv_rows(path, text):
        empty = False
        yield row
    if empty:
        raise FileFormatError(f"{path} is empty; expected a header and rows")


def _number(cell: str, place: str, missing: bool) -> float:
    if missing and cell.strip().lower() in _MISSING:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FileFormatError(f"{place}: {cell!r} is not a finite number")
    return value


class _TimeParser:
    """Reads times in one format, that of the first, which is found out."""

    def __init__(self) -> None:
        self.format = ""

    def __call__(self, text: str, place: str) -> datetime.datetime:
        for layout in (self.format,) if self.format else _FORMATS:
            try:
                moment = datetime.datetime.strptime(text, layout)
            except ValueError:
                continue
            self.format = layout
            return moment
        expected = f"as {self.format}" if self.format else "such as 2015-03-01 or 2015-03-01 14:00"
        raise FileFormatError(f"{place}: {text!r} is not a time {expected}")


def _stamps(times: list[datetime.datetime]) -> np.ndarray:
    return np.array(times, dtype="datetime64[s]")


def load_index_prices(name: str = "sp500") -> Series:
    """Daily prices that ship with the package arch, which is not imported.

    Parameters
    ----------
    name : "sp500" (the S&P 500) or "nasdaq" (the NASDAQ Composite), 1999-01-04 to 2018-12-31, 5031
        trading days: open, high, low, close, adjusted close in index points, and volume in shares;
        or "wti", crude oil (West Texas Intermediate, Cushing), 1986-01-02 to 2019-01-03: its price
        in US dollars a barrel, days without one left out

    ValueError for another name; ImportError, saying what to install, if arch is missing. Source:
    Yahoo Finance; for wti the series DCOILWTICO of the US Energy Information Administration; as
    packaged by arch (NCSA licence).
    """
    if name not in _PRICES:
        raise ValueError(f"there are no prices {name!r}; there are {', '.join(_PRICES)}")
    series = read_series(package_file("arch", f"data/{name}/{_PRICES[name]}"), drop_missing=True)
    names = ("open", "high", "low", "close", "adjusted close", "volume")
    return Series(series.times, series.values, names if name != "wti" else ("price",))


def load_seattle_weather() -> Series:
    """The weather of each day in Seattle, 2012-01-01 to 2015-12-31: 1461 days, as observed.

    Columns: precipitation in mm, temp_max and temp_min in °C, wind (mean speed) in m/s. The file's
    sixth column, a word for the kind of weather, is left out. ImportError, saying what to install,
    if vega_datasets is missing. Source: NOAA, public domain, as packaged by vega_datasets (MIT).
    """
    columns = ("precipitation", "temp_max", "temp_min", "wind")
    return read_series(package_file("vega_datasets", "_data/seattle-weather.csv"), columns)


def load_seattle_temperatures() -> Series:
    """Hourly temperatures in Seattle over one year, in °C: 8759 hours, dated 2010 in the file.

    **They are no observations.** The package describes them as temperatures of 2010, but the same
    hour of neighbouring days differs by 0.09 °C in the mean, and the hottest hour of the year has
    24.4 °C: by all appearances they are NOAA's hourly normals, means over thirty years. They show
    the course of a day and of a year; a forecast of them says nothing about the weather. For
    observed hours see `load_tmy3`.

    One column, temperature, which the file has in °F; the hour that the clock leaves out on 14
    March is missing. ImportError, saying what to install, if vega_datasets is missing. Source:
    NOAA, public domain, as packaged by vega_datasets (MIT).
    """
    series = read_series(package_file("vega_datasets", "_data/seattle-temps.csv"))
    return Series(series.times, (series.values - 32.0) / 1.8, ("temperature",))


def load_tmy3(path: str | os.PathLike[str] | None = None) -> Series:
    """Hourly weather of a typical year in the format TMY3: 8760 observed hours.

    Each month is that of the year in which it was most typical of the place, so that the years of
    the times differ: within a month the hours follow each other, and at its end begins another of
    the `Series.runs`. Six hours at either side of these seams are smoothed in the file.

    Parameters
    ----------
    path : a file of the National Renewable Energy Laboratory's archive TMY3; None takes Greensboro,
        North Carolina (723170TYA), which ships with the package pvlib (not imported)

    Columns: temperature and dew point in °C, humidity in %, pressure in mbar, wind speed in m/s,
    wind direction in degrees, cloud cover in tenths, irradiance (global horizontal) in W/m². The
    times are local standard time and stand at the end of the hour.

    ImportError, saying what to install, if pvlib is missing; FileNotFoundError; FileFormatError,
    naming the line. Source: S. Wilcox, W. Marion, Users Manual for TMY3 Data Sets (2008),
    NREL/TP-581-43156, of the National Solar Radiation Database; public domain, as packaged by pvlib
    (BSD-3).
    """
    path = package_file("pvlib", "data/723170TYA.CSV") if path is None else Path(path)
    rows = _rows(path)
    next(rows)  # the place
    header = next(rows, (2, []))[1]
    stamp = ("Date (MM/DD/YYYY)", "Time (HH:MM)")
    lacking = [name for name in (*stamp, *_TMY3) if name not in header]
    if lacking:
        raise FileFormatError(f"{path}, line 2: there is no column {lacking[0]}; is it TMY3?")
    places = [header.index(name) for name in _TMY3]
    day, hour = (header.index(name) for name in stamp)
    times, values = [], []
    for line, row in rows:
        place = f"{path}, line {line}"
        if len(row) != len(header):
            raise FileFormatError(f"{place}: {len(row)} cells; the header has {len(header)}")
        try:
            start = datetime.datetime.strptime(row[day], "%m/%d/%Y")
            times.append(start + datetime.timedelta(hours=_HOURS.index(row[hour]) + 1))
        except ValueError:
            raise FileFormatError(f"{place}: {row[day]}, {row[hour]} is not a time") from None
        numbers = [_number(row[k], f"{place}, {header[k]}", False) for k in places]
        if -9900.0 in numbers:
            name = header[places[numbers.index(-9900.0)]]
            raise FileFormatError(f"{place}: {name} is missing (-9900); use another station's file")
        values.append(numbers)
    if not times:
        raise FileFormatError(f"{path} has no hours; is it whole?")
    return Series(_stamps(times), np.array(values), tuple(_TMY3.values()))


def load_ett(path: str | os.PathLike[str]) -> tuple[Series, tuple[int, int, int]]:
    """A file of the Electricity Transformer Temperature data: ETTh1, ETTh2, ETTm1 or ETTm2 (.csv).

    Returns
    -------
    series : the loads HUFL, HULL, MUFL, MULL, LUFL, LULL and OT, the oil temperature in °C; hourly
        (h), or every 15 minutes (m)
    borders : the rows before which training, validation and test end in the usual split, 12, 4 and
        4 months of 30 days

    FileNotFoundError; FileFormatError, naming the line, for another file or one that is too short.
    Source: H. Zhou et al., Informer (AAAI 2021), github.com/zhouhaoyi/ETDataset, CC BY-ND 4.0.
    """
    series = read_series(path, _ETT, time="date")
    steps = np.diff(series.times).astype(np.int64)
    usual = int(np.median(steps)) if len(steps) else 0
    if usual not in (3600, 900):
        raise FileFormatError(f"{path}: rows are {usual} s apart; expected an hour or 15 minutes")
    if (steps != usual).any():
        line = int(np.argmax(steps != usual)) + 3
        raise FileFormatError(f"{path}, line {line}: rows are missing before it")
    month = 30 * 24 * 3600 // usual
    if len(series) < 20 * month:
        raise FileFormatError(
            f"{path} has {len(series)} rows; the usual split needs {20 * month}. Is it whole?"
        )
    return series, (12 * month, 16 * month, 20 * month)
