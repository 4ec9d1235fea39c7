"""Tables: the dialects that are read, what columns become, and how they are encoded."""

import datetime
import zipfile

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone

from minimand.study import StudyError
from minimand.study._tables import TableEncoder, inspection, read_table, typed
from tests.helpers import told

WORDS = ["N/A", "n/a", "NA", "NaN", "nan", "NULL", "null", "None", "#N/A", "-", "?", "", "  "]


def column(values, semicolons=False, **options):
    """The only column of a table, as typed; `semicolons` reads it from a file."""
    frame = pl.DataFrame({"a": values}, **options)
    return typed(frame)[0]


def written(tmp_path, text, encoding="utf-8", name="t.csv"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return read_table(tmp_path / name)


def encoded(training, everything=None, **kinds):
    """The encoder fitted to training rows, and the features of all rows."""
    training = pl.DataFrame(training, strict=False)
    encoder = TableEncoder(kinds).fit(training)
    return encoder, encoder.transform(training if everything is None else pl.DataFrame(everything, strict=False))


TABLE = {"a": ["1.5", "2.25", "-3"], "b c": ["x", "naïve, very", 'two\nlines of "text"'], "d": ["7", "8", "9"]}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_files_of_each_dialect_give_equal_tables(separator, encoding, end, tmp_path):
    text = pl.DataFrame(TABLE).write_csv(separator=separator).replace("\n", end)
    assert written(tmp_path, text, encoding).to_dict(as_series=False) == TABLE


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ('a, b, c\n1, "x, y", 2\n3, "z", 4\n', {"a": ["1", "3"], "b": ["x, y", "z"], "c": ["2", "4"]}),
        ("a;b\n1,5;2,5\n2,5;3,5\n", {"a": ["1,5", "2,5"], "b": ["2,5", "3,5"]}),
        ("a\n1,5\n2,5\n", {"a": ["1,5", "2,5"]}),
        ("\n\na,b\n1,2\n\n3,4\n\n", {"a": ["1", "3"], "b": ["2", "4"]}),
        (",x\n1,2\n", {"column_1": ["1"], "x": ["2"]}),
        ("\tx\n1\t2\n", {"column_1": ["1"], "x": ["2"]}),
        ('size,n\n5" pipe,1\n6",2\n', {"size": ['5" pipe', '6"'], "n": ["1", "2"]}),
        ('size,n\n5" pipe\n6",2\n', {"size": ['5" pipe', '6"'], "n": ["", "2"]}),
    ],
)
def test_text_files(text, table, tmp_path):
    assert written(tmp_path, text).to_dict(as_series=False) == table


def workbook(path, rows):
    """An Excel file with a sheet of strings and numbers."""
    cell = lambda v: f"<c><v>{v}</v></c>" if isinstance(v, float) else f'<c t="inlineStr"><is><t>{v}</t></is></c>'  # noqa: E731
    sheet = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    main, office = "http://schemas.openxmlformats.org", "application/vnd.openxmlformats-officedocument.spreadsheetml"
    relation = f'xmlns:r="{main}/officeDocument/2006/relationships"'
    files = {
        "[Content_Types].xml": f'<Types xmlns="{main}/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType="{office}.sheet.main+xml"/><Override PartName="/xl/sheet.xml" ContentType="{office}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{main}/package/2006/relationships"><Relationship Id="r1" Type="{main}/officeDocument/2006/relationships/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{main}/package/2006/relationships"><Relationship Id="r1" Type="{main}/officeDocument/2006/relationships/worksheet" Target="sheet.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}/spreadsheetml/2006/main" {relation}><sheets><sheet name="s" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/sheet.xml": f'<worksheet xmlns="{main}/spreadsheetml/2006/main"><sheetData>{sheet}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


NUMBERS, LETTERS = [0.5, 1.5, 2.5, 4.0], ["x", "y", "x", "z"]
WRITERS = {
    "csv": pl.DataFrame.write_csv,
    "tsv": lambda frame, file: frame.write_csv(file, separator="\t"),
    "txt": lambda frame, file: frame.write_csv(file, separator="|"),
    "parquet": pl.DataFrame.write_parquet,
    "arrow": pl.DataFrame.write_ipc,
    "feather": pl.DataFrame.write_ipc,
    "jsonl": pl.DataFrame.write_ndjson,
    "ndjson": pl.DataFrame.write_ndjson,
    "xlsx": lambda frame, file: workbook(file, [frame.columns, *frame.rows()]),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("name", ["a[b]*?", "{x}", "~t", "t.csv"])
def test_formats_give_equal_columns_whatever_the_name(name, suffix, tmp_path):
    if suffix == "xlsx":
        pytest.importorskip("fastexcel")
    WRITERS[suffix](pl.DataFrame({"a": NUMBERS, "b": LETTERS}), tmp_path / f"{name}.{suffix}")
    WRITERS[suffix](pl.DataFrame({"a": NUMBERS[:3], "b": LETTERS[:3]}), tmp_path / f"ab-b.{suffix}")
    a, b = typed(read_table(tmp_path / f"{name}.{suffix}"))
    assert (a.kind, a.values.to_list(), b.kind, b.values.to_list()) == ("number", NUMBERS, "category", LETTERS)


def test_excel_asks_for_its_package(monkeypatch, tmp_path):
    (tmp_path / "t.xlsx").write_text("")
    monkeypatch.setitem(__import__("sys").modules, "fastexcel", None)
    with told(StudyError, ["t.xlsx", "fastexcel", "minimand[excel]"]):
        read_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.xyz", b"a", [".csv", ".parquet", ".xlsx", ".jsonl"]),
        ("t.csv", b"", ["cannot be read as CSV", "empty"]),
        ("t.csv", b" \n\n", ["cannot be read as CSV", "empty"]),
        ("t.csv", b"\x00\x01 not a table", ["cannot be read as CSV", "not text"]),
        ("t.csv", b"a,target\n", ["no rows"]),
        ("t.csv", b"a,b,a\n1,2,3\n", ["two columns", "'a'"]),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", ["['1', '2', '3']", "3 fields", "2 columns"]),
        ("t.parquet", b"\x00\x01", ["cannot be read as PARQUET"]),
        ("t.feather", b"\x00\x01", ["cannot be read as FEATHER"]),
        ("t.jsonl", b"[1, 2", ["cannot be read as JSONL"]),
    ],
)
def test_bad_files_are_told(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with told(StudyError, words):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("strings", "numbers"),
    [
        (["1", "-2", "+3"], [1, -2, 3]),
        (["1.5", "2", "1e3"], [1.5, 2, 1000]),
        (["1,5", "2", "-0,25"], [1.5, 2, -0.25]),
        (["1,234.5", "2"], [1234.5, 2]),
        (["1.234,5", "2"], [1234.5, 2]),
        (["1.234.567", "2"], [1234567, 2]),
        (["1 234", "5\u00a0678,5", "1\u202f000\u202f000"], [1234, 5678.5, 1000000]),
        (["1'234.5", "2"], [1234.5, 2]),
        (["12%", "3.5 %", "-4"], [12, 3.5, -4]),
        (["12,5 %", "3 %"], [12.5, 3]),
        # The other values of the column tell what a comma is.
        (["1,234", "2.5"], [1234, 2.5]),
        (["1,234", "2,5"], [1.234, 2.5]),
        (["1,234", "0,567"], [1.234, 0.567]),
        (["1.234", "2,5"], [1234, 2.5]),
        (["1.234", "5.678"], [1.234, 5.678]),
        (["  4", "5  "], [4, 5]),
    ],
)
def test_numbers_of_every_convention(strings, numbers):
    found = column(strings)
    assert (found.kind, found.note) == ("number", "")
    np.testing.assert_allclose(found.values, numbers, rtol=1e-15)


@pytest.mark.parametrize(("separator", "number"), [("\t", 1234), (";", 1.234)])
def test_commas_before_three_digits_follow_the_separator_of_fields(separator, number, tmp_path):
    found, _ = typed(written(tmp_path, "a;b\n1,234;x\n5,678;y\n".replace(";", separator)))
    np.testing.assert_allclose(found.values, [number, number * 5678 / 1234], rtol=1e-15)
    assert found.note == f"'1,234' is taken for {number}"


@pytest.mark.parametrize("word", WORDS)
def test_missing_words_are_missing(word):
    for others in (["1.5", "2.5", "3"], ["x", "y", "x"], ["2020-01-02", "2020-01-03", "2020-01-02"]):
        found = column([*others, word, None])
        assert (found.missing, found.values.null_count(), found.note) == (2, 2, "")
        assert found.kind == {"1.5": "number", "x": "category"}.get(others[0], "date")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["N/A!"], "number"),  # one of 300
        ([f"w{k}" for k in range(15)], "number"),  # 5 %
        ([f"w{k}" for k in range(16)], "category"),  # more
        (["low", "high", "error"] * 30, "number"),  # 30 %, three words
        (["low", "high", "error", "off"] * 23, "category"),  # four words
    ],
)
def test_few_words_among_numbers_are_missing_and_told(words, kind):
    strings = [str(k / 7) for k in range(300 - len(words))] + words
    found = column(strings)
    assert found.kind == kind
    if kind == "number":
        assert found.missing == len(words)
        assert found.note.startswith(f"{len(words)} of 300 values are not numbers ({words[0]!r}")
        np.testing.assert_allclose(found.values.drop_nulls(), [float(s) for s in strings[: -len(words)]], rtol=1e-15)
    else:
        assert found.missing == 0


def test_few_numbers_and_a_word_are_categories():
    assert column(["1", "2", "3", "4+"] * 20).kind == "category"


DAY = datetime.date(2021, 3, 14)


@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m/%d/%y", "%d.%m.%y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%y"],
)  # fmt: skip
@pytest.mark.parametrize("time", ["", " %H:%M", "T%H:%M:%S", " %H:%M:%S.%f", " %I:%M %p"])
def test_dates_of_every_format(form, time):
    moments = [datetime.datetime(2021, 3, 14, 1, 59) + datetime.timedelta(days=17 * k, hours=k) for k in range(40)]
    found = column([moment.strftime(form + time) for moment in moments])
    assert (found.kind, found.note) == ("date", "")
    assert found.values.to_list() == (moments if time else [moment.date() for moment in moments])


@pytest.mark.parametrize(
    ("strings", "moments"),
    [
        (["2020-01-02T03:04:05Z", "2020-06-01T23:30:00+02:00"], ["2020-01-02 03:04:05", "2020-06-01 21:30:00"]),
        (["2020-01-02 00:30 -0530", "2020-06-01 12:00 UTC"], ["2020-01-02 06:00:00", "2020-06-01 12:00:00"]),
    ],
)
def test_times_of_zones_are_in_utc(strings, moments):
    found = column(strings)
    assert found.values.cast(pl.String).str.head(19).to_list() == moments
    assert found.note == "times are in UTC"
    aware = pl.Series("a", moments).str.to_datetime().dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    assert column(aware).values.to_list() == found.values.to_list()


def test_months_are_their_first_day():
    assert column(["2020-01", "2020-03"]).values.to_list() == [datetime.date(2020, 1, 1), datetime.date(2020, 3, 1)]
    assert column(["Jan 2020", "March 2020"]).values.to_list() == [datetime.date(2020, 1, 1), datetime.date(2020, 3, 1)]


@pytest.mark.parametrize(("separator", "day"), [("/", "2020-01-02"), (".", "2020-02-01"), ("-", "2020-02-01")])
def test_days_and_months_in_doubt_are_told(separator, day):
    found = column([f"01{separator}02{separator}2020", f"03{separator}04{separator}2020"])
    assert str(found.values[0]) == day
    assert found.note == f"'01{separator}02{separator}2020' is taken for {day}"


def test_few_words_among_dates_are_missing_and_told():
    found = column([str(DAY + datetime.timedelta(days=k)) for k in range(99)] + ["soon"])
    assert (found.kind, found.missing) == ("date", 1)
    assert found.note == "1 of 100 values are not dates ('soon') and count as missing"


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ([f"id-{k}x" for k in range(30)], "category", ["differ", "identifier"]),
        (list(range(30)), "number", ["rows"]),
        (list(range(1, 31)), "number", ["rows"]),
        ([7] * 30, "number", ["all values are 7"]),
        (["x"] * 30, "category", ["all values are x"]),
        ([None] * 30, "number", ["all values are missing"]),
        (["?"] * 30, "category", ["all values are missing"]),
    ],
)
def test_columns_that_are_left_out_are_told(values, kind, words):
    found = column(values)
    assert (found.used, found.kind) == (False, kind)
    assert found.treatment == "left out"
    assert found.note.endswith("so the column is left out")
    for word in words:
        assert word in found.note


@pytest.mark.parametrize(
    ("values", "treatment"),
    [
        ([1.5, None, 2.0], "standardised, clipped; the median if missing, and a mark"),
        ([2, 1, 0], "standardised, clipped"),
        ([5.0, 5.0, None], "standardised, clipped; the median if missing, and a mark"),
        ([True, False, True], "0 for 'false', 1 for 'true'"),
        (["yes", "no", "yes"], "0 for 'no', 1 for 'yes'"),
        (["yes", None, "yes"], "0 for '(missing)', 1 for 'yes'"),
        (["yes", None, "no"], "one-hot, 2 categories and one for missing values"),
        ([f"c{k % 60}" for k in range(120)], "one-hot, the 50 most frequent of 60 categories"),
        ([["u", "v"], ["u"], None], "multi-hot, 2 categories and one for missing values"),
        ([[1, 2], [3], []], "multi-hot, 3 categories"),
        ([datetime.date(2020, 1, d) for d in (1, 9, 3)], "elapsed days, cycles of weekday, day of year"),
        (
            [datetime.datetime(2020 + y, 1 + y, 1, 5 * y) for y in (0, 2, 1)],
            "year, elapsed days, cycles of month, weekday, day of year, hour",
        ),
        (["a text of words", "one more of them", "and the third one"], "TF-IDF of words and characters"),
    ],
)
def test_treatments(values, treatment):
    found = column(values)
    assert (found.used, found.note) == (True, "")
    assert found.treatment.startswith(treatment)


def sentences(random, count, words=8):
    vocabulary = np.array([f"w{k}ord" for k in range(200)])
    return [" ".join(random.choice(vocabulary, size=words)) for _ in range(count)]


def test_texts_categories_and_identifiers_are_told_apart():
    random = np.random.default_rng(0)
    texts = sentences(random, 200)
    assert column(texts).kind == "text"
    assert column([*texts[:150], *texts[:50]]).kind == "text"
    assert column(texts[:50] * 4).kind == "category"
    assert column(["Bad business day", "Very good day", "Not so good"] * 20).kind == "category"
    assert column(["猫が好きです" + text[1:3] for text in texts[:50]]).kind == "text"
    assert not column([f"{k:08x}-0f0f-4a4a" for k in range(50)]).used
    nearly = column([f"n{k // 2 if k < 20 else k}" for k in range(100)])
    assert nearly.used
    assert nearly.note == "90 of 100 values differ; remove the column if it is an identifier"
    assert not column([f"n{k % 50}" for k in range(100)]).note


@pytest.mark.parametrize(
    "values",
    [[[1.5], [2.5]], [{"u": 1}, {"u": 2}], [b"u", b"v"], [[["u"]], [["v"]]], [object(), object()]],
)
def test_nested_columns_are_refused(values):
    options = {"schema": {"a": pl.Object}} if type(values[0]) is object else {}
    with told(StudyError, ["'a'", "not a number or a category"]):
        column(values, **options)


@pytest.mark.parametrize("values", [[1.0, float("inf"), 2.0], ["1", "-inf", "2"]])
def test_infinite_numbers_are_refused(values):
    with told(StudyError, ["'a'", "infinite"]):
        column(values)


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt64, pl.Float32, pl.Decimal(12, 3), pl.Duration("us"), pl.Time])
def test_numbers_of_every_type(kind):
    counts = pl.Series("a", [k % 7 for k in range(60)])
    found = column(counts.cast(kind))
    assert (found.kind, found.values.dtype) == ("number", pl.Float64)
    np.testing.assert_array_equal(found.values, counts)


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["0", "1", "2"])])
def test_categories_of_numbers_remain_categories(kind):
    assert column(pl.Series("a", ["0", "1", "2"] * 5).cast(kind)).kind == "category"


def clipped(scores):
    return scores / np.hypot(1.0, np.divide(scores, 3.0))


def test_numbers_are_standardised_by_the_training_rows_and_clipped_smoothly_at_3():
    train = {"a": [1.0, 2.0, None, 6.0], "b": [3.0, 4.0, 5.0, 6.0]}
    encoder, x = encoded(train, {"a": [2.0, None], "b": [None, 4.5]}, a="number", b="number")
    # The median of a's training rows is 2, and only a has an indicator.
    a, indicator = np.array([1, 2, 2, 6]), np.array([0, 0, 1, 0])

    def score(value, of):
        return clipped((value - of.mean()) / of.std())

    b = np.array(train["b"])
    np.testing.assert_allclose(
        x,
        [[score(2, a), score(4.5, b), score(0, indicator)], [score(2, a), 0, score(1, indicator)]],
        atol=1e-6,
    )
    assert x.dtype == np.float32
    assert list(encoder.get_feature_names_out()) == ["a", "b", "missingindicator_a"]


def test_outliers_are_clipped_and_other_numbers_hardly_change():
    random = np.random.default_rng(0)
    values = np.append(random.normal(size=5000), 1e9)
    _, x = encoded({"a": values[:-1]}, {"a": values}, a="number")
    z = (values[:-1] - values[:-1].mean()) / values[:-1].std()
    assert x[-1] == pytest.approx(3.0)
    # 1 - 1 / sqrt(1 + 1 / 9) is 5.1 %.
    small = np.abs(z) < 1
    np.testing.assert_allclose(x[:-1, 0][small], z[small], rtol=0.052)
    assert (np.diff(x[:-1, 0][np.argsort(z)]) >= 0).all()


def test_numbers_that_training_rows_lack_are_finite():
    training = {"a": pl.Series([None, None], dtype=pl.Float64), "b": [1.0, 3.0]}
    _, x = encoded(training, {"a": [5.0, None], "b": [None, 1.0]}, a="number", b="number")
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[:, 1], [0, clipped(-1)], rtol=1e-6)


def test_two_categories_are_one_column_and_more_are_one_hot():
    train = {"a": ["no", "yes", "no", "yes"], "b": ["u", "v", None, "w"]}
    encoder, x = encoded(train, {"a": ["yes", "no"], "b": ["new", None]}, a="category", b="category")
    np.testing.assert_array_equal(x, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    assert list(encoder.get_feature_names_out()) == ["a_yes", "b_(missing)", "b_u", "b_v", "b_w"]


def test_rare_categories_are_merged():
    train = [f"c{k:02}" for k in range(60) for _ in range(2 if k < 50 else 1)]
    _, x = encoded({"a": train}, {"a": ["c00", "c49", "c50", "c59", "new"]}, a="category")
    expected = np.zeros((5, 51))
    expected[[0, 1, 2, 3], [0, 49, 50, 50]] = 1
    np.testing.assert_array_equal(x, expected)


def test_dates_are_cycles_and_elapsed_time():
    dates = [datetime.datetime(2020, 1, 1, 0) + datetime.timedelta(hours=1000 * k) for k in range(30)]
    encoder, x = encoded({"a": dates}, a="date")
    names = [name.removeprefix("a: ") for name in encoder.get_feature_names_out()]
    turns = {
        "month": [(d.month - 1) / 12 for d in dates],
        "weekday": [d.isoweekday() / 7 for d in dates],
        "day of year": [d.timetuple().tm_yday / 365.25 for d in dates],
        "hour": [d.hour / 24 for d in dates],
    }
    expected = {"year": [d.year for d in dates], "elapsed days": [d.timestamp() / 86400 for d in dates]}
    for name, turn in turns.items():
        expected |= {f"{name} as {f}": getattr(np, f)(2 * np.pi * np.array(turn)) for f in ("sin", "cos")}
    assert names == list(expected)
    table = np.array(list(expected.values())).T
    np.testing.assert_allclose(x, clipped((table - table.mean(0)) / table.std(0)), atol=1e-5)


def test_parts_of_dates_that_do_not_vary_in_training_rows_are_dropped():
    days = [datetime.date(2020, 1, d) for d in (6, 13, None, 20) if d] + [None]
    later = [datetime.date(2021, 5, 1), None, days[0], days[1]]
    encoder, x = encoded({"a": days}, {"a": later}, a="date")
    assert [n.partition("a: ")[2] for n in encoder.get_feature_names_out()] == ["elapsed days", "missing", "day of year as sin", "day of year as cos"]  # fmt: skip
    assert x.shape == (4, 4)
    # The median of the training rows is the date at 13 January.
    np.testing.assert_allclose(
        x[1], [0, clipped(np.sqrt(3)), *encoded({"a": days}, {"a": [days[1]]}, a="date")[1][0, 2:]], atol=1e-6
    )
    assert np.isfinite(x).all()
    # Nothing varies: what is left is a column of zeros.
    np.testing.assert_array_equal(encoded({"a": days[:1] * 5}, a="date")[1], np.zeros((5, 1)))


def test_lists_are_multi_hot():
    train = {"a": [["u", "v"], ["v", None], [], None]}
    encoder, x = encoded(train, {"a": [["v", "new"], [], None, ["u", "u"]]}, a="list")
    assert list(encoder.get_feature_names_out()) == ["a: (missing)", "a: (none)", "a: u", "a: v"]
    np.testing.assert_array_equal(x, [[0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(
        encoded({"a": pl.Series([None, None], dtype=pl.List(pl.String))}, train, a="list")[1].ravel(), [0, 0, 0, 1]
    )


@pytest.mark.parametrize(
    "texts",
    [
        sentences(np.random.default_rng(0), 60),
        sentences(np.random.default_rng(0), 60, words=3),
        sentences(np.random.default_rng(0), 60, words=100),
        [None, "", "...", "a b c", "😀 😀 😀", "猫 犬 鳥"] * 10,
        [None] * 30 + ["a"] * 30,
    ],
    ids=["sentences", "short", "long", "odd", "hardly any"],
)
def test_texts_become_finite_numbers(texts):
    data = {"a": texts, "b": texts[::-1]}
    encoder, x = encoded({name: values[:40] for name, values in data.items()}, data, a="text", b="text")
    assert x.shape == (60, len(encoder.get_feature_names_out()))
    assert len(set(encoder.get_feature_names_out())) == x.shape[1] > 0
    assert np.isfinite(x).all()
    assert x[40:].std() > 0
    np.testing.assert_array_equal(clone(encoder).fit(pl.DataFrame(data)[:40]).transform(pl.DataFrame(data)), x)


def test_equal_texts_are_close_and_words_count():
    random = np.random.default_rng(1)
    topics = ["goal match team player league", "bank market share price trade"]
    labels = random.integers(0, 2, size=200)
    texts = [" ".join(random.choice([*topics[k].split(), "the", "of", "said"], size=6)) for k in labels]
    _, x = encoded({"a": texts[:100]}, {"a": texts}, a="text")
    centers = np.array([x[:100][labels[:100] == k].mean(0) for k in (0, 1)])
    nearest = ((x[100:, None] - centers) ** 2).sum(-1).argmin(1)
    assert np.mean(nearest == labels[100:]) > 0.95


def test_a_table_of_every_kind(tmp_path):
    random = np.random.default_rng(2)
    rows = 80
    frame = pl.DataFrame(
        {
            "id": [f"k{index}" for index in range(rows)],
            "weight": [f"{value:.1f}".replace(".", ",") for value in random.normal(70, 9, size=rows)],
            "share": [f"{value} %" for value in random.integers(0, 100, size=rows)],
            "town": random.choice(["Bern", "Genf", "n/a"], size=rows),
            "smoker": random.choice(["ja", "nein"], size=rows),
            "born": [
                f"{random.integers(1, 29)}.{random.integers(1, 13)}.19{random.integers(50, 99)}" for _ in range(rows)
            ],
            "story": sentences(random, rows),
        }
    )
    columns = typed(written(tmp_path, frame.write_csv(separator=";").replace("\n", "\r\n"), "utf-16"))
    assert [(c.name, c.kind, c.used) for c in columns] == [
        ("id", "category", False),
        ("weight", "number", True),
        ("share", "number", True),
        ("town", "category", True),
        ("smoker", "category", True),
        ("born", "date", True),
        ("story", "text", True),
    ]
    table = inspection(columns)
    assert table.columns == ["column", "kind", "missing", "distinct", "example", "treatment", "note"]
    assert table["column"].to_list() == frame.columns
    assert table["missing"].to_list()[3] == (frame["town"] == "n/a").sum()
    assert table["distinct"].to_list()[3:5] == [2, 2]
    assert table["example"][1] == f"{float(frame['weight'][0].replace(',', '.')):g}"
    features = pl.DataFrame([c.values for c in columns if c.used])
    encoder = TableEncoder({c.name: c.kind for c in columns if c.used}).fit(features[:50])
    x = encoder.transform(features)
    assert x.shape == (rows, len(encoder.get_feature_names_out()))
    assert np.isfinite(x).all()
