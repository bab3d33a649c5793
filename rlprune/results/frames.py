"""Columns of frames as the analyses need them: checked, numeric, grouped."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api import types

from rlprune.errors import ResultsError


def numeric(df: pd.DataFrame, name: str) -> npt.NDArray[Any]:
    """A column as NumPy integers or floats, missing values as NaN.

    Raises:
        ResultsError: no such column, two of them, or not numeric.
    """
    check_columns(df, [name])
    column = df[name]
    if not types.is_numeric_dtype(column) or types.is_complex_dtype(column):
        raise ResultsError(
            f"column {name} is {column.dtype}, not numeric. Choose a column of real numbers."
        )
    if column.hasnans or types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    values = column.to_numpy()
    return values if values.dtype.kind in "iuf" else values.astype(np.float64)


def check_columns(df: pd.DataFrame, names: Sequence[str]) -> None:
    """Each name must be a column of the frame, once.

    Raises:
        ResultsError: names the column and the nearest one that exists.
    """
    for name in names:
        count = int((df.columns == name).sum())
        if count == 0:
            there = [str(column) for column in df.columns]
            near = difflib.get_close_matches(str(name), there, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(there)}."
            raise ResultsError(f"column {name}: no such column. {hint}")
        if count > 1:
            raise ResultsError(f"column {name} appears {count} times. Rename the others.")


def group_codes(df: pd.DataFrame, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Numbers 0, 1, ... of the combinations of values, in the order in which they appear.

    Missing values are equal to each other. Without names all rows are one group.

    Returns:
        [N], one number per row.
    """
    codes, count = np.zeros(len(df), dtype=np.int64), 1
    for name in names:
        part, size = _value_codes(df[name])
        if count * size >= 2**63:
            codes, uniques = pd.factorize(codes)
            count = len(uniques)
        codes *= size
        codes += part
        count *= size
    return pd.factorize(codes)[0]


def _value_codes(values: pd.Series[Any]) -> tuple[npt.NDArray[Any], int]:
    """A number from 0 for each value, and how many there may be."""
    if isinstance(values.dtype, pd.CategoricalDtype):  # has them, -1 for missing ones
        return values.cat.codes.to_numpy().astype(np.int32) + 1, len(values.cat.categories) + 1
    codes, uniques = pd.factorize(values, use_na_sentinel=False)
    return codes, max(1, len(uniques))
