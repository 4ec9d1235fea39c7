"""Tables: the files that hold one, what each of its columns becomes, and the encoding of columns as numbers."""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from minimand.study._settings import StudyError

_MISSING = ("", "N/A", "n/a", "NA", "NaN", "nan", "NULL", "null", "None", "#N/A", "-", "?")
_CATEGORIES = 50
_TOPICS = 400
# Records that tell the separator of a text file.
_RECORDS = 200
# A group of three digits follows a blank, an apostrophe or a comma.
_GROUPING = r"[,'\u2019 \u00a0\u202f]"
_GROUPED = rf"^[+-]?[1-9]\d{{0,2}}({_GROUPING}\d{{3}})+(\.\d*)?$"
_DATE_AND_TIME = (
    r"^(?<date>.*?\d)(?:[T\s,]+(?<hour>\d{1,2}):(?<minute>\d\d)(?::(?<second>\d\d(?:\.\d+)?))?"
    r"\s*(?<half>[AaPp])?\.?[Mm]?\.?\s*(?<zone>Z|UTC|GMT|[+-]\d\d:?\d\d)?)?$"
)
_NAMED_MONTHS = ("%d-%B-%Y", "%B-%d-%Y", "%d-%B-%y", "%Y-%m", "%B-%Y")
# A script without blanks between words has about as many words as characters.
_WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]+"


class _SemicolonTable(pl.DataFrame):
    """A table whose file has semicolons between the fields, so that a comma is likely a decimal comma."""


@dataclass(frozen=True)
class Column:
    """One column of a table, and what a study makes of it.

    Attributes:
        name: name in the file.
        kind: `"number"`, `"category"`, `"date"`, `"text"` or `"list"` (of categories).
        values: Float64, String, Date or Datetime (without a zone), String, or List(String); null where missing.
        missing: number of missing values.
        distinct: number of distinct values, without missing ones.
        treatment: what the network gets of the column.
        note: what a user must be told about the column; often empty.
        used: False for a column that is left out of the features.
    """

    name: str
    kind: str
    values: pl.Series
    missing: int
    distinct: int
    treatment: str
    note: str
    used: bool


def read_table(path: Path) -> pl.DataFrame:
    """Read a table of raw values; those of text files are all strings.

    Args:
        path: a CSV, TSV, TXT, Parquet, Arrow (Feather), JSON-lines or Excel file.

    Returns:
        The table. `typed` tells what its columns are.

    Raises:
        StudyError: the file cannot be read or has no rows.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise StudyError(f"{path}: the file name must end in one of {', '.join(READERS)}.")
    try:
        # Polars would take brackets and stars in a name for a pattern.
        with path.open("rb") as file:
            frame = reader(file)
    except ModuleNotFoundError as error:
        raise StudyError(f"{path} needs the package 'fastexcel'. Install it: pip install 'minimand[excel]'") from error
    # The libraries of the formats raise errors of many types for a file that is not what its name says.
    except Exception as error:
        raise StudyError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from error
    if frame.height == 0:
        raise StudyError(f"{path} has no rows. Give a file with at least one row below the names of the columns.")
    return frame


def _read_text(file: IO[bytes]) -> pl.DataFrame:
    """A table of strings from text in any of the usual encodings, with any of the usual separators."""
    text = _decoded(file.read())
    separator, header = _separator(text)
    names = [name.strip() or f"column_{index}" for index, name in enumerate(header, start=1)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two columns are named {min(twice)!r}. Rename one of them.")
    try:
        if re.search(rf'(^|{re.escape(separator)}) +"', text, re.MULTILINE):
            raise pl.exceptions.ComputeError("a blank before a quote")
        frame = pl.read_csv(text.encode(), separator=separator, infer_schema=False)
        frame.columns = names
    # Python's reader is slower, and takes quotes after a blank and within a field.
    except pl.exceptions.PolarsError:
        records = list(_records(text, separator))[1:]
        for record in records:
            if len(record) > len(names):
                raise ValueError(f"{record} has {len(record)} fields, but there are {len(names)} columns.") from None
            record += [""] * (len(names) - len(record))
        frame = pl.DataFrame(records, schema=dict.fromkeys(names, pl.String), orient="row")
    # Empty lines are not rows.
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    return _SemicolonTable(frame) if separator == ";" else frame


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            # Windows' superset of Latin-1.
            text = content.decode("cp1252", errors="replace")
    if "\0" in text:
        raise ValueError("the file is not text.")
    if not text.strip():
        raise ValueError("the file is empty.")
    return text.lstrip(" \r\n").replace("\r\n", "\n").replace("\r", "\n")


def _records(text: str, separator: str) -> Iterable[list[str]]:
    return (record for record in csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True) if record)


def _separator(text: str) -> tuple[str, list[str]]:
    """The separator with which most records have as many fields as the first one, and the fields of the first one."""
    found = []
    for separator in ",;\t|":
        try:
            records = list(islice(_records(text, separator), _RECORDS))
        except csv.Error:
            continue
        width = len(records[0])
        agreement = sum(len(record) == width for record in records) / len(records)
        found.append((width > 1, agreement, width, separator, records[0]))
    if not found:
        raise ValueError("no separator of fields was found.")
    several, _, _, separator, header = max(found)
    # A column on its own may have decimal commas.
    return (separator, header) if several else ("\x1f", next(iter(_records(text, "\x1f"))))


READERS: dict[str, Any] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), _read_text),
    ".parquet": pl.read_parquet,
    **dict.fromkeys((".arrow", ".feather"), pl.read_ipc),
    **dict.fromkeys((".jsonl", ".ndjson"), lambda file: pl.read_ndjson(file, infer_schema_length=None)),
    **dict.fromkeys((".xlsx", ".xls"), lambda file: pl.read_excel(file, infer_schema_length=None)),
}


def typed(frame: pl.DataFrame) -> tuple[Column, ...]:
    """The kind and the values of each column of a table.

    Strings of numbers and of dates are read, with the decimal sign and the order of day and month that fit the most
    values of the column.

    Raises:
        StudyError: a column is nested or binary, or has infinite values.
    """
    return tuple(_column(series, isinstance(frame, _SemicolonTable)) for series in frame.iter_columns())


def _column(series: pl.Series, semicolons: bool) -> Column:
    kind, values, note = _kind_and_values(series, semicolons)
    missing, distinct = values.null_count(), values.drop_nulls().n_unique()
    present = len(values) - missing
    if not present:
        reason = "all values are missing"
    elif distinct == 1 and not missing:
        reason = f"all values are {_shown(values)}"
    elif kind == "category" and distinct == present > max(2, missing):
        reason = f"all {present} values differ, as those of an identifier"
    elif kind == "number" and any(np.array_equal(values, np.arange(k, k + len(values))) for k in (0, 1)):
        reason = "the values number the rows"
    else:
        if kind == "category" and distinct > max(_CATEGORIES, present / 2):
            note = _joined(note, f"{distinct} of {present} values differ; remove the column if it is an identifier")
        return Column(series.name, kind, values, missing, distinct, _treatment(kind, values), note, used=True)
    note = _joined(note, f"{reason}, so the column is left out")
    return Column(series.name, kind, values, missing, distinct, "left out", note, used=False)


def _treatment(kind: str, values: pl.Series) -> str:
    if kind == "text":
        return f"TF-IDF of words and characters, reduced to at most {_TOPICS} numbers"
    if kind in ("category", "list"):
        categories = (values.explode() if kind == "list" else values).drop_nulls().n_unique()
        if kind == "category" and values.n_unique() == 2:
            return "0 for {!r}, 1 for {!r}".format(*sorted(values.unique().fill_null("(missing)")))
        most = f"the {_CATEGORIES} most frequent of " if categories > _CATEGORIES else ""
        gaps = " and one for missing values" if values.null_count() else ""
        return f"{'one' if kind == 'category' else 'multi'}-hot, {most}{categories} categories{gaps}"
    treatment = "standardised, clipped"
    if kind == "date":
        parts = [name for name in _varying(_date_parts(values)) if name != "missing"]
        cycles = dict.fromkeys(name.partition(" as ")[0] for name in parts if " as " in name)
        plain = [name for name in parts if " as " not in name]
        treatment = ", ".join([*plain, f"cycles of {', '.join(cycles)}"] if cycles else plain)
    return treatment + ("; the median if missing, and a mark" if values.null_count() else "")


def _kind_and_values(series: pl.Series, semicolons: bool) -> tuple[str, pl.Series, str]:
    """The kind of a column, its values, and a note of what was decided in doubt."""
    kind = series.dtype
    if kind == pl.List and (kind.inner.is_integer() or kind.inner in (pl.String, pl.Categorical, pl.Enum, pl.Boolean)):
        return "list", series.cast(pl.List(pl.String)), ""
    if kind.is_nested() or kind in (pl.Object, pl.Binary):
        raise StudyError(f"Column {series.name!r} ({kind}) is not a number or a category. Remove it.")
    if kind == pl.Datetime and kind.time_zone:
        return "date", series.dt.convert_time_zone("UTC").dt.replace_time_zone(None), "times are in UTC"
    if kind in (pl.Date, pl.Datetime):
        return "date", series, ""
    if kind.is_numeric() or kind.is_temporal() or kind == pl.Null:
        return "number", _finite(series.to_physical() if kind.is_temporal() else series), ""
    if kind != pl.String:
        return "category", series.cast(pl.String), ""
    strings = series.str.strip_chars()
    strings = pl.select(pl.when(~strings.is_in(_MISSING)).then(strings).alias(series.name)).to_series()
    sample, present = _sample(strings), strings.count()
    readers: dict[str, Callable[[pl.Series], tuple[pl.Series, str]]] = {
        "number": partial(_numbers, semicolons=semicolons),
        "date": _dates,
    }
    for name, read in readers.items():
        if 2 * read(sample)[0].count() <= len(sample):
            continue
        values, note = read(strings)
        words = strings.filter(values.is_null() & strings.is_not_null())
        if len(words) <= present / 20 or (
            words.n_unique() <= 3 and len(words) < present / 2 and values.n_unique() > 10
        ):
            if len(words):
                shown = ", ".join(map(repr, words.unique(maintain_order=True).head(3)))
                note = _joined(f"{len(words)} of {present} values are not {name}s ({shown}) and count as missing", note)
            values = values.rename(series.name)
            return name, _finite(values) if name == "number" else values, note
    several_words = (sample.str.count_matches(_WORD).mean() or 0) >= 3
    text = several_words and strings.n_unique() > min(present / 2, 1000)
    return "text" if text else "category", strings, ""


def _finite(numbers: pl.Series) -> pl.Series:
    numbers = numbers.cast(pl.Float64).fill_nan(None)
    if numbers.is_infinite().any():
        raise StudyError(f"Column {numbers.name!r} has infinite values. Remove or replace them first.")
    return numbers


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _shown(values: pl.Series) -> str:
    """The first value that is not missing."""
    first = values.drop_nulls().head(1).to_list()
    return "" if not first else f"{first[0]:.12g}" if isinstance(first[0], float) else str(first[0])


def _numbers(strings: pl.Series, semicolons: bool) -> tuple[pl.Series, str]:
    """The numbers that strings are, with null for other strings, and a note if the decimal sign is in doubt."""
    strings = strings.str.strip_suffix("%").str.strip_chars_end()
    point = _point_numbers(strings)
    commas = semicolons or strings.str.contains(",", literal=True).any()
    if point.count() == strings.count() and not commas:
        return point, ""
    comma = _point_numbers(strings.str.replace_many([",", "."], [".", ","]))
    if point.count() != comma.count():
        return max(point, comma, key=lambda values: values.count()), ""
    doubtful = point.ne_missing(comma)
    if not doubtful.any():
        return point, ""
    first = strings.filter(doubtful)[0]
    values = comma if semicolons and "," in first else point
    return values, f"{first!r} is taken for {values.filter(doubtful)[0]:.12g}"


def _point_numbers(strings: pl.Series) -> pl.Series:
    """The numbers that strings with decimal points are; null for other strings."""
    plain = strings.cast(pl.Float64, strict=False)
    if plain.count() == strings.count():
        return plain
    grouped = strings.str.replace_all(_GROUPING, "").cast(pl.Float64, strict=False)
    return pl.select(pl.when(strings.str.contains(_GROUPED)).then(grouped).otherwise(plain)).to_series()


def _dates(strings: pl.Series) -> tuple[pl.Series, str]:
    """The dates or times that strings are, with null for other strings, and a note if day and month are in doubt."""
    parts = strings.str.extract_groups(_DATE_AND_TIME).struct.unnest()
    day = parts["date"].str.replace_all(r"[\s,./-]+", "-")
    # The first format wins where two read equally many values. Slashes are American.
    orders = ("m-%d", "d-%m") if parts["date"].str.contains("/", literal=True).any() else ("d-%m", "m-%d")
    formats = ["%Y-%m-%d", *(f"%{order}-%{year}" for year in "Yy" for order in orders), *_NAMED_MONTHS]
    sample = _sample(day)
    formats = [form for form in formats if 2 * _days(sample, form).count() >= len(sample)]
    if not formats:
        return pl.select(pl.repeat(None, len(day), dtype=pl.Date)).to_series(), ""
    found = [_days(day, form) for form in formats]
    dates = max(found, key=lambda values: values.count())
    note = ""
    for other in found:
        if other.count() == dates.count() and (doubtful := dates.ne_missing(other)).any():
            note = f"{strings.filter(doubtful)[0]!r} is taken for {dates.filter(doubtful)[0]}"
    if not parts["hour"].count():
        return dates, note
    number = pl.col("hour", "minute", "second").cast(pl.Float64)
    zone = pl.col("zone").str.replace(":", "").cast(pl.Int64, strict=False).fill_null(0)
    hour = pl.when(pl.col("half").is_null()).then("hour").otherwise(pl.col("hour") % 12)
    hour += 12 * pl.col("half").str.to_uppercase().eq("P").fill_null(False)
    seconds = 3600 * hour + 60 * pl.col("minute") + pl.col("second")
    seconds -= zone.sign() * (zone.abs() // 100 * 3600 + zone.abs() % 100 * 60)
    times = parts.with_columns(number.fill_null(0)).select(dates.cast(pl.Datetime("us")) + pl.duration(seconds=seconds))
    return times.to_series(), _joined(note, "times are in UTC" if parts["zone"].count() else "")


def _days(strings: pl.Series, form: str) -> pl.Series:
    """Dates of a format; that of a month has its first day."""
    dates = (strings if "d" in form else strings + "-1").str.to_date(
        form if "d" in form else f"{form}-%d", strict=False
    )
    # A year of two digits is not one of the first century.
    return pl.select(pl.when(dates.dt.year() >= 1000).then(dates)).to_series()


def _sample(strings: pl.Series) -> pl.Series:
    present = strings.drop_nulls()
    return present.gather_every(len(present) // 500 + 1)


def _date_parts(dates: pl.Series) -> pl.DataFrame:
    """The year, the days since 1970, whether the date is missing, and its cycles as sine and cosine."""
    at = dates.cast(pl.Datetime("us")).alias("at")
    turns = {
        "month": (at.dt.month() - 1) / 12,
        "weekday": at.dt.weekday() / 7,
        "day of year": at.dt.ordinal_day() / 365.25,
        "hour": (at.dt.hour() + at.dt.minute() / 60) / 24,
    }
    cycles = {
        f"{name} as {function}": getattr(2 * np.pi * turn, function)().round(12)
        for name, turn in turns.items()
        for function in ("sin", "cos")
    }
    plain = {"year": at.dt.year(), "elapsed days": at.dt.epoch("us") / 86.4e9, "missing": at.is_null()}
    return pl.DataFrame({**plain, **cycles}).cast(pl.Float64)


def _varying(parts: pl.DataFrame) -> list[str]:
    return [name for name in parts.columns if parts[name].drop_nulls().n_unique() > 1] or ["elapsed days"]


class _Dates(TransformerMixin, BaseEstimator):
    """The parts of a date that vary among the training rows."""

    def fit(self, dates: pl.Series, y: Any = None) -> _Dates:
        self.parts_ = _varying(_date_parts(dates))
        return self

    def transform(self, dates: pl.Series) -> np.ndarray:
        return _date_parts(dates).select(self.parts_).to_numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        return np.array(self.parts_, dtype=object)


class Topics(TruncatedSVD):
    """A truncated SVD with as many components as topics, or as features where those are fewer."""

    def fit_transform(self, x: Any, y: Any = None) -> np.ndarray:
        self.set_params(n_components=min(_TOPICS, x.shape[1]))
        return super().fit_transform(x)


def _lower(text: str | None) -> str:
    """Text in lower case, with a word at least."""
    text = (text or "").lower()
    return text if re.search(r"\w\w", text) else f"{text} (none)"


def _items(values: pl.Series | None) -> list[str]:
    return ["(missing)"] if values is None else values.drop_nulls().to_list() or ["(none)"]


def _clipped(numbers: np.ndarray) -> np.ndarray:
    """The numbers, with those far beyond 3 brought smoothly to 3, so that no outlier rules a network."""
    return numbers / np.sqrt(1 + (numbers / 3) ** 2)


def _step(kind: str) -> Any:
    """The encoder of the columns of a kind, or of one column that is a date, a text or a list."""
    if kind in ("number", "date"):
        imputer = SimpleImputer(strategy="median", add_indicator=kind == "number", keep_empty_features=True)
        clipping = FunctionTransformer(_clipped, feature_names_out="one-to-one")
        numbers = make_pipeline(imputer, StandardScaler(), clipping)
        return make_pipeline(_Dates(), numbers) if kind == "date" else numbers
    if kind == "list":
        return CountVectorizer(analyzer=_items, binary=True, max_features=_CATEGORIES)
    if kind == "text":
        # In single precision, the SVD takes half the time.
        shared: dict[str, Any] = {
            "preprocessor": _lower,
            "sublinear_tf": True,
            "max_features": 20_000,
            "dtype": np.float32,
        }
        counts = {"words": TfidfVectorizer(**shared)}
        counts["characters"] = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **shared)
        # A common factor keeps the weights of the topics, which standardisation would lose; a text has length 6 twice.
        union = FeatureUnion(list(counts.items()), transformer_weights=dict.fromkeys(counts, 6.0))
        return make_pipeline(union, Topics(n_iter=2, random_state=0), StandardScaler(with_std=False))
    # One more category is for the merged ones.
    return OneHotEncoder(drop="if_binary", handle_unknown="ignore", max_categories=_CATEGORIES + 1, sparse_output=False)


class TableEncoder(TransformerMixin, BaseEstimator):
    """Numbers from the typed columns of a table; what they depend on is learned from the rows that it is fitted to.

    Args:
        kinds: the kind of each column to encode, by its name.
    """

    def __init__(self, kinds: dict[str, str]):
        self.kinds = kinds

    def fit(self, frame: pl.DataFrame, y: Any = None) -> TableEncoder:
        """Learn medians, scales, categories and words from training rows."""
        together = {kind: [name for name, k in self.kinds.items() if k == kind] for kind in ("number", "category")}
        steps: list[tuple[str, Any, str | list[str]]]
        steps = [(kind, _step(kind), names) for kind, names in together.items() if names]
        # A column of another kind has a step of its own.
        alone = [(name, kind) for name, kind in self.kinds.items() if kind not in together]
        steps += [(f"{kind}{index}", _step(kind), name) for index, (name, kind) in enumerate(alone)]
        self.encoder_ = ColumnTransformer(steps, sparse_threshold=0).fit(self._filled(frame))
        return self

    def transform(self, frame: pl.DataFrame) -> np.ndarray:
        """Features (n, d) in float32."""
        with warnings.catch_warnings():
            # A category that no training row has is encoded as zeros.
            warnings.filterwarnings("ignore", "Found unknown categories")
            return self.encoder_.transform(self._filled(frame)).astype("float32")

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The name of each feature."""
        names: list[str] = []
        for _, step, columns in self.encoder_.transformers_:
            if isinstance(columns, str):
                names += [f"{columns}: {name}" for name in step.get_feature_names_out([columns])]
            elif step != "drop":
                names += list(step.get_feature_names_out(columns))
        return np.array(names, dtype=object)

    def _filled(self, frame: pl.DataFrame) -> pl.DataFrame:
        categories = [name for name, kind in self.kinds.items() if kind == "category"]
        return frame.select(list(self.kinds)).with_columns(pl.col(categories).fill_null("(missing)"))


def inspection(columns: Iterable[Column]) -> pl.DataFrame:
    """A row for each column of a table, with what a study makes of the column."""
    return pl.DataFrame(
        {
            "column": column.name,
            "kind": column.kind,
            "missing": column.missing,
            "distinct": column.distinct,
            "example": _shown(column.values),
            "treatment": column.treatment,
            "note": column.note,
        }
        for column in columns
    )
