"""What to do about requests that are not as they should be, and how many there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from foundation.errors import DataError

Policy = Literal["stop", "skip"]


class StopError(DataError):
    """The first bad request, where the policy is to stop."""


class BadRows:
    """Stops at the first bad request, or counts them by what is wrong.

    Attributes:
        counts: requests left out, by reason.
        examples: what the error of the first one of each reason would have been.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy: Policy = policy
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def meet(self, reason: str, number: int, error: DataError, policy: Policy | None = None) -> None:
        """Leaves `number` requests out, or raises what `error` says.

        Raises:
            StopError: the policy is to stop.
        """
        if (policy or self.policy) == "stop":
            raise StopError(str(error))
        self.counts[reason] += number
        self.examples.setdefault(reason, str(error))


class RowFilter:
    """Requests in memory, of which bad ones are left out check by check.

    Args:
        where: what errors call the file and row group.
        first: number of the first row within the row group.
        frame: the requests.
        bad: what to do.
    """

    def __init__(self, where: str, first: int, frame: pl.DataFrame, bad: BadRows) -> None:
        self.where, self.frame, self.bad = where, frame, bad
        self.rows = np.arange(first, first + frame.height)

    def drop(
        self,
        wrong: NDArray[np.bool_],
        column: str,
        reason: str,
        problem: Callable[[int], str],
        policy: Policy | None = None,
    ) -> NDArray[np.bool_]:
        """Leaves out the requests that are `wrong` `[B]`; `problem` says of one of them what follows its row number.

        Returns:
            what is kept `[B]`.

        Raises:
            StopError: there is one, and the policy is to stop.
        """
        if wrong.any():
            worst = int(wrong.argmax())
            error = DataError(f"{self.where}: column {column!r}: row {self.rows[worst]} {problem(worst)}")
            self.bad.meet(reason, int(wrong.sum()), error, policy)
            self.frame = self.frame.filter(pl.Series(~wrong))
            self.rows = self.rows[~wrong]
        return ~wrong

    def drop_nulls(self, columns: Sequence[str]) -> None:
        """Every request needs a value in these columns."""
        for column in columns:
            self.drop(
                self.frame[column].is_null().to_numpy(), column, f"{column} is null", lambda _: "is null"
            )

    def drop_candidates(self, column: str, most: int) -> None:
        """Every request needs candidates, at most so many, and none of them null."""
        self._check_lists(column)
        num = self._lengths(column)
        self.drop(num == 0, column, "no candidate", lambda _: "holds no candidate; every request needs one")
        num = self._lengths(column)
        self.drop(
            num > most,
            column,
            "too many candidates",
            lambda row: f"holds {num[row]} candidates; at most {most} are read, --max-candidates says so",
        )
        nulls = self._any(column, self._flat(column).is_null())
        self.drop(nulls, column, "null candidate", lambda _: "holds a null; every candidate has an id")

    def drop_uneven(self, column: str, candidates: str, called: str) -> None:
        """A list column needs a value for each candidate."""
        self._check_lists(column)
        given, num = self._lengths(column), self._lengths(candidates)
        self.drop(
            given != num,
            column,
            f"{column} is of another length than the candidates",
            lambda row: f"holds {given[row]} {called} for {num[row]} candidates",
        )

    def drop_wrong_labels(self, column: str) -> None:
        """A label is 0, 1 or null."""
        flat = self._flat(column)
        if not (flat.dtype.is_numeric() or flat.dtype in (pl.Boolean, pl.Null)):
            raise DataError(f"{self.where}: column {column!r}: is {flat.dtype}; a label is 0, 1 or null")
        numbers = flat.cast(pl.Float64)
        # Where there is no label, pandas writes NaN.
        wrong = (~numbers.is_in([0.0, 1.0]) & numbers.is_not_nan()).fill_null(False)
        owner = np.repeat(np.arange(self.frame.height), self._lengths(column))
        values, rows = numbers.filter(wrong).to_list(), owner[wrong.to_numpy()]

        def problem(row: int) -> str:
            return f"holds {values[int(np.searchsorted(rows, row))]:g}; a label is 0, 1 or null"

        self.drop(self._any(column, wrong), column, f"{column} is out of range", problem)

    def drop_infinite(self, column: str) -> None:
        """Numbers are finite, also as float32."""
        flat = self._flat(column)
        if flat.dtype.is_float():
            wrong = flat.cast(pl.Float32).is_infinite().fill_null(False)
            self.drop(
                self._any(column, wrong), column, f"{column} is infinite", lambda _: "holds an infinite value"
            )

    def _check_lists(self, column: str) -> None:
        dtype = self.frame[column].dtype
        if not isinstance(dtype, pl.List | pl.Array):
            raise DataError(f"{self.where}: column {column!r}: is {dtype}; it must hold a list in every row")

    def _lists(self, column: str) -> pl.Series:
        values = self.frame[column]
        return values.arr.to_list() if isinstance(values.dtype, pl.Array) else values

    def _lengths(self, column: str) -> NDArray[np.int64]:
        return self._lists(column).list.len().fill_null(0).cast(pl.Int64).to_numpy()

    def _flat(self, column: str) -> pl.Series:
        return self._lists(column).drop_nulls().explode(empty_as_null=False)

    def _any(self, column: str, flat: pl.Series) -> NDArray[np.bool_]:
        """Which requests have a value that is true."""
        owner = np.repeat(np.arange(self.frame.height), self._lengths(column))
        return np.bincount(owner[flat.to_numpy()], minlength=self.frame.height) > 0
