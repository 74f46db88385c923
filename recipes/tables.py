"""A table of rows becomes arrays for a network: read, split, filled in, encoded and standardised.

Whatever is learned from values (medians, categories, means) is learned from the training rows alone, so that the
held-out rows stay unseen. All of it is scikit-learn's. What a table can have wrong is a `TableError` of one line.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

__all__ = ["Prepared", "Rows", "Table", "TableError", "default_table", "prepare", "read_table"]

# Fewer leave too few held out for an error that means anything.
FEWEST_ROWS = 50
# Of a text column with more values than this, the rare ones share a column: an identifier must not become thousands.
MOST_CATEGORIES = 32


class TableError(ValueError):
    """What is wrong with a table, in one line for whoever gave it."""


@dataclass(frozen=True)
class Table:
    """Features and a target without gaps, and what was left out to get there."""

    name: str
    target_name: str
    features: pd.DataFrame
    target: np.ndarray
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Inputs `(rows, inputs)` and standardised targets `(rows, 1)`, both float32, and targets `(rows,)` in their own units."""

    inputs: np.ndarray
    targets: np.ndarray
    raw_targets: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Prepared:
    """Three sets of rows that share none; the first `numeric` inputs are numbers, the others 0 or 1."""

    train: Rows
    validation: Rows
    held_out: Rows
    numeric: int
    target_mean: float
    target_scale: float
    preparation: ColumnTransformer

    def in_target_units(self, predictions: np.ndarray) -> np.ndarray:
        return np.asarray(predictions, "float64")[:, 0] * self.target_scale + self.target_mean


def default_table() -> Table:
    """scikit-learn's diabetes: 442 patients, ten measurements each, and how far the disease got in a year."""
    bunch: Any = load_diabetes(as_frame=True, scaled=False)
    return _table("diabetes", bunch.frame, "target", {"file": "scikit-learn's diabetes"})


def read_table(path: Path, target: str) -> Table:
    """The table in a CSV file with a header line; rows without a target are dropped.

    Raises:
        TableError: The file or the target column is missing, unreadable, or nothing to learn from.
    """
    try:
        content = path.read_bytes()
        frame = pd.read_csv(path, low_memory=False)
    except FileNotFoundError:
        raise TableError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise TableError(f"{path} cannot be read as a CSV file: {' '.join(str(error).split())}") from None
    if target not in frame.columns:
        raise TableError(f"{path} has no column {target!r}{_instead(target, list(map(str, frame.columns)))}")
    return _table(path.stem, frame, target, {"file": str(path), "sha256": hashlib.sha256(content).hexdigest()})


def _instead(name: str, columns: list[str]) -> str:
    close = difflib.get_close_matches(name, columns, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has {', '.join(columns[:20])}{', ...' if len(columns) > 20 else ''}"


def _table(name: str, frame: pd.DataFrame, target: str, facts: dict[str, Any]) -> Table:
    # An infinite number has no mean; it counts as missing.
    frame = frame.replace([np.inf, -np.inf], np.nan)
    _refuse_text(pd.Series(frame[target]), target)
    known = frame.dropna(subset=[target])
    values = known[target].to_numpy("float64")
    if len(known) < FEWEST_ROWS:
        raise TableError(f"{name} has {_rows(len(known))} with a value of {target!r}; at least {FEWEST_ROWS} are needed")
    if values.min() == values.max():
        raise TableError(f"the target {target!r} is {values[0]:g} in every row: there is nothing to learn")
    features = known.drop(columns=target).dropna(axis="columns", how="all").apply(_truths_as_text)
    empty = [str(column) for column in known if column != target and column not in features]
    if not len(features.columns):
        raise TableError(f"{name} has no column beside {target!r} to learn from")
    notes = []
    if len(known) < len(frame):
        notes.append(f"dropped {_rows(len(frame) - len(known))} without a value of {target!r}")
    if empty:
        notes.append(f"dropped what has no value in any row: {', '.join(empty)}")
    facts = facts | {"target": target, "rows": len(known), "rows_dropped": len(frame) - len(known), "columns_dropped": empty}
    return Table(name, target, features, values, facts, tuple(notes))


def _truths_as_text(column: pd.Series) -> pd.Series:
    """Truth values as text, so that they are a category each, and their gaps another one."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column
    return column.map(lambda value: str(value) if isinstance(value, bool | np.bool_) else value)


def _refuse_text(column: pd.Series, name: str) -> None:
    if pd.api.types.is_bool_dtype(column):
        raise TableError(f"the target {name!r} is not numeric: it is true or false")
    if pd.api.types.is_numeric_dtype(column):
        return
    known = column.dropna()
    text = known[pd.Series(pd.to_numeric(known, errors="coerce")).isna()]
    raise TableError(
        f"the target {name!r} is not numeric: {len(text)} of its {len(known)} values are text, such as {text.iloc[0]!r} "
        f"in row {text.index[0] + 1}"
    )


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def prepare(table: Table, seed: int) -> Prepared:
    """Hold out 20 % of the rows, keep 15 % of the rest for early stopping, and make arrays of all three."""
    rows = np.arange(len(table.target))
    rest, held_out = train_test_split(rows, test_size=0.2, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.15, random_state=seed)
    preparation = _preparation(table.features).fit(table.features.iloc[train])
    numeric = preparation.output_indices_["numbers"]
    scaler: Any = StandardScaler().fit(table.target[train, None])

    def arrays(chosen: np.ndarray) -> Rows:
        inputs = np.asarray(preparation.transform(table.features.iloc[chosen]), "float32")
        raw = table.target[chosen]
        return Rows(inputs, np.asarray(scaler.transform(raw[:, None]), "float32"), raw)

    return Prepared(
        arrays(train),
        arrays(validation),
        arrays(held_out),
        numeric=numeric.stop - numeric.start,
        target_mean=float(scaler.mean_[0]),
        target_scale=float(scaler.scale_[0]),
        preparation=preparation,
    )


def _preparation(features: pd.DataFrame) -> ColumnTransformer:
    """Gaps become the median, or a category of their own; which numbers were gaps is kept as inputs of 0 and 1."""
    numbers = [c for c in features if pd.api.types.is_numeric_dtype(features[c]) and not pd.api.types.is_bool_dtype(features[c])]
    texts = [column for column in features if column not in numbers]
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MOST_CATEGORIES, sparse_output=False)
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            ("gaps", MissingIndicator(error_on_new=False), numbers),
            ("texts", make_pipeline(SimpleImputer(strategy="constant", fill_value="(missing)"), encoder), texts),
        ]
    )
