"""Series in time: tables with dates, TMY3 and ETT files, what packages ship, windows."""

import gzip

import numpy as np
import pytest

import gpunn
from gpunn import data
from gpunn.data import DataLoader, SlidingWindows
from gpunn.errors import FileFormatError


def written(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize(
    ("days", "name"),
    [
        (("2012/01/30", "2012/01/31", "2012/02/01"), "a.csv"),
        (("1/30/2012", "1/31/2012", "2/1/2012"), "a.csv.gz"),
        (("2012-01-30", "2012-01-31", "2012-02-01"), "a.csv"),
        (("2012-01-30 00:00:00", "2012-01-31 00:00:00", "2012-02-01 00:00:00"), "a.csv"),
        (("2012-01-30T00:00", "2012-01-31T00:00", "2012-02-01T00:00"), "a.csv"),
    ],
)
def test_tables_with_dates(tmp_path, days, name):
    rows = [f"{day},{k},word,{k / 4}" for k, day in enumerate(days)]
    path = written(tmp_path, "\ufeffdate,a,kind, b \n" + "\n\n".join(rows) + "\n", name)
    series = data.read_series(path, ("b", "a"))
    np.testing.assert_array_equal(
        series.times, np.array(["2012-01-30", "2012-01-31", "2012-02-01"], "M8[s]")
    )
    np.testing.assert_array_equal(series.values, [[0, 0], [0.25, 1], [0.5, 2]])
    assert series.names == ("b", "a") and len(series) == 3
    np.testing.assert_array_equal(series.column("a"), [0, 1, 2])
    with pytest.raises(KeyError, match="there are b, a"):
        series.column("c")


def test_times_of_another_column_missing_numbers_and_runs(tmp_path):
    text = (
        "x,when\n1,2020-01-01 00:00\n.,2020-01-01 01:00\n3,2020-01-01 02:00\n4,2020-01-01 03:00\n"
    )
    text += "5,2020-01-01 04:00\n"
    series = data.read_series(written(tmp_path, text), time="when", drop_missing=True)
    np.testing.assert_array_equal(series.values[:, 0], [1, 3, 4, 5])
    np.testing.assert_array_equal(series.runs(), [0, 1, 1, 1])
    with pytest.raises(FileFormatError, match=r"table.csv, line 3, x: '\.' is not a finite number"):
        data.read_series(written(tmp_path, text), time="when")
    one = data.read_series(written(tmp_path, "t,x\n2020-01-01,1\n"))
    np.testing.assert_array_equal(one.runs(), [0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("date,a\n", "a header and no rows"),
        ("date\n2020-01-01\n", "no column of numbers"),
        ("date,b\n2020-01-01,1\n", "line 1: there is no column a; the header is date, b"),
        ("date,a\n2020-01-01,1\n2020-01-02\n", "line 3: 1 cells; the header has 2"),
        ("date,a\n2020-01-01,inf\n", "line 2, a: 'inf' is not a finite number"),
        ("date,a\nMonday,1\n", "line 2: 'Monday' is not a time such as 2015-03-01"),
        ("date,a\n2020-01-01,1\n1/2/2020,1\n", "line 3: '1/2/2020' is not a time as %Y-%m-%d"),
        ("date,a\n2020-01-02,1\n2020-01-02,1\n", "line 3: 2020-01-02 is not later than"),
        ("date,a\n2020-02-30,1\n", "line 2: '2020-02-30' is not a time"),
    ],
)
def test_tables_that_are_wrong(tmp_path, text, message):
    with pytest.raises(FileFormatError, match=message):
        data.read_series(written(tmp_path, text), None if "column of" in message else ("a",))


def test_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        data.read_series(tmp_path / "none.csv")
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(gzip.compress(b"date,a\n2020-01-01,1\n" * 50)[:-12])
    with pytest.raises(FileFormatError, match="cut.csv.gz is damaged"):
        data.read_series(path)
    path.write_bytes(b"date,a")
    with pytest.raises(FileFormatError, match="is damaged"):
        data.read_series(path)
    path = written(tmp_path, f'date,a,b\n2020-01-01,1,"two\nlines"\n2020-01-02,x,{"9" * 200_000}\n')
    with pytest.raises(FileFormatError, match="table.csv, line 4: this is not a table"):
        data.read_series(path, ("a",))
    path = written(tmp_path, 'date,a,b\r\n2020-01-01,1,"two\r\nlines"\r\n2020-01-02,x,3\r\n')
    with pytest.raises(FileFormatError, match="line 4, a: 'x' is not a finite number"):
        data.read_series(path, ("a",))
    path = tmp_path / "binary.csv"
    path.write_bytes(b"date,a\n\xff\xfe")
    with pytest.raises(FileFormatError, match="byte 7: this is not a text file"):
        data.read_series(path)


def test_series_of_packages():
    prices = data.load_index_prices("nasdaq")
    assert len(prices) == 5031 and prices.names[3:] == ("close", "adjusted close", "volume")
    np.testing.assert_allclose(prices.values[0, :4], [2207.540039, 2233.570068, 2192.679932,
        2208.050049])  # fmt: skip
    assert str(prices.times[-1])[:10] == "2018-12-31"
    with pytest.raises(ValueError, match="no prices 'dax'; there are sp500, nasdaq, wti"):
        data.load_index_prices("dax")
    days = data.load_seattle_weather()
    np.testing.assert_array_equal(days.values[1], [10.9, 10.6, 2.8, 4.5])
    assert len(days) == 1461 and days.runs()[-1] == 0
    hours = data.load_seattle_temperatures()
    assert len(hours) == 8759 and hours.values[0, 0] == pytest.approx((39.4 - 32) / 1.8)
    assert abs(hours.values[24:] - hours.values[:-24]).mean() < 0.1  # normals, no observations
    np.testing.assert_array_equal(np.unique(hours.runs()), [0, 1])


TMY3 = "Date (MM/DD/YYYY),Time (HH:MM),GHI (W/m^2),TotCld (tenths),Dry-bulb (C),Dew-point (C),"
TMY3 += "RHum (%),Pressure (mbar),Wdir (degrees),Wspd (m/s),Lprecip quantity (hr)\n"


def tmy3(rows, header=TMY3):
    return '723170,"GREENSBORO, AIRPORT",NC,-5.0,36.100,-79.950,273\n' + header + "\n".join(rows)


def test_tmy3(tmp_path):
    rows = [
        "01/31/1988,22:00,0,10,-1.5,0.25,90,990,270,3.5,-9900",
        "01/31/1988,23:00,0,10,-2,0,91,991,280,4,-9900",
        "01/31/1988,24:00,0,10,-3,0,91,991,280,4,-9900",
        "02/01/1996,01:00,5,0,8,1,50,1000,0,0,-9900",
        "02/01/1996,02:00,5,0,8,1,50,1000,0,0,-9900",
    ]
    series = data.load_tmy3(written(tmp_path, tmy3(rows)))
    assert series.names[:3] == ("temperature", "dew point", "humidity")
    np.testing.assert_array_equal(series.values[0], [-1.5, 0.25, 90, 990, 3.5, 270, 10, 0])
    assert str(series.times[2]) == "1988-02-01T00:00:00"  # hour 24 is the next day's first
    np.testing.assert_array_equal(series.runs(), [0, 0, 0, 1, 1])
    for bad, message in (
        ([rows[0].replace("-1.5", "-9900")], "line 3: Dry-bulb .* is missing"),
        ([rows[0], rows[1][:20]], "line 4: 4 cells; the header has 11"),
        ([rows[0].replace("01/31", "13/31")], "line 3: 13/31/1988, 22:00 is not a time"),
        ([rows[0].replace("22:00", "25:00")], "line 3: 01/31/1988, 25:00 is not a time"),
        ([rows[0].replace(",90,", ",x,")], r"line 3, RHum \(%\): 'x' is not a finite"),
        ([], "has no hours"),
    ):
        with pytest.raises(FileFormatError, match=message):
            data.load_tmy3(written(tmp_path, tmy3(bad)))
    with pytest.raises(FileFormatError, match=r"line 2: there is no column GHI .* is it TMY3"):
        data.load_tmy3(written(tmp_path, tmy3(rows, TMY3.replace("GHI", "XHI"))))
    with pytest.raises(FileFormatError, match=r"there is no column Time \(HH:MM\); is it TMY3"):
        data.load_tmy3(written(tmp_path, tmy3(rows, TMY3.replace("Time", "Hour"))))
    with pytest.raises(FileFormatError, match="line 2: there is no column"):
        data.load_tmy3(written(tmp_path, "723170,A\n"))


def test_ett(tmp_path):
    header = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n"
    start = np.datetime64("2016-07-01T00:00:00")
    rows = [f"{str(start + k * np.timedelta64(1, 'h')).replace('T', ' ')},1,2,3,4,5,6,{k}\n"
            for k in range(20 * 30 * 24 + 5)]  # fmt: skip
    series, borders = data.load_ett(written(tmp_path, header + "".join(rows)))
    assert borders == (8640, 11520, 14400) and series.names[-1] == "OT"
    np.testing.assert_array_equal(series.column("OT"), np.arange(14405))
    for wrong, message in (
        (rows[:9], "has 9 rows; the usual split needs 14400"),
        (rows[:5] + rows[6:9], "line 7: rows are missing before it"),
        (rows[:9:2], "rows are 7200 s apart"),
        (rows[:1], "rows are 0 s apart"),
    ):
        with pytest.raises(FileFormatError, match=message):
            data.load_ett(written(tmp_path, header + "".join(wrong)))
    with pytest.raises(FileFormatError, match="line 1: there is no column OT"):
        data.load_ett(written(tmp_path, header.replace("OT", "X") + rows[0]))


def test_sliding_windows():
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10) * 10
    windows = SlidingWindows(x, y, window=3, horizon=2)
    assert len(windows) == 6
    past, future = windows[1]
    np.testing.assert_array_equal(past.numpy(), x[1:4])
    np.testing.assert_array_equal(future.numpy(), [40, 50])
    assert np.shares_memory(past.numpy(), x) and np.shares_memory(future.numpy(), y)
    every, targets = windows.whole()
    assert every.shape == (6, 3, 2) and targets.shape == (6, 2)
    np.testing.assert_array_equal(every[4], x[4:7])
    batch = next(iter(DataLoader(windows, batch_size=4)))
    np.testing.assert_array_equal(batch[1].numpy(), targets[:4])
    alone = SlidingWindows(gpunn.tensor(y, device="cpu"), window=9)
    np.testing.assert_array_equal(alone[0][1].numpy(), [90])


def test_windows_before_and_after_a_row_and_within_runs():
    y = np.arange(12)
    before = SlidingWindows(y, window=3, horizon=2, last=7).whole()
    after = SlidingWindows(y, window=3, horizon=2, first=7).whole()
    assert before[1].max() == 6 and after[1].min() == 7 and after[0].min() == 4
    np.testing.assert_array_equal(after[1][:, 0], [7, 8, 9, 10])
    np.testing.assert_array_equal(SlidingWindows(y, window=3, stride=4).starts, [0, 4, 8])
    runs = [0] * 6 + [1] * 6
    np.testing.assert_array_equal(
        SlidingWindows(y, window=3, horizon=2, runs=runs).starts, [0, 1, 6, 7]
    )
    for options, message in (
        ({"window": 0}, "window must be 1 or more"),
        ({"window": 3, "runs": [0]}, "got 12, 12 and 1"),
        ({"window": 12}, "no sample of 12 \\+ 1 steps fits"),
        ({"window": 2, "first": 12}, "rows 12 to 11 of 12"),
    ):
        with pytest.raises(ValueError, match=message):
            SlidingWindows(y, **options)
