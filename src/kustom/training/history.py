"""What a run leaves: Keras's `History`, with a picture and a table."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import keras

__all__ = ["History"]


class History(keras.callbacks.History):
    """The values of each epoch of a run, as Keras's `History` has them.

    Attributes:
        history: From each name to its values, one an epoch.
        epoch: The epochs' numbers, from 0.
        execution: How the steps were run: `way`, `reason`, `backend`, and what was measured.
        skipped: The steps, numbered from 0 over the whole run, that were undone since their loss was not finite.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch: list[int] = []
        self.execution: dict[str, Any] = {}
        self.skipped: list[int] = []
        # To which of the epochs each value of a name belongs: not all are measured in each, as with validation_freq.
        self._places: dict[str, list[int]] = {}

    def add(self, epoch: int, values: dict[str, Any]) -> None:
        """Add an epoch's values."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)
            self._places.setdefault(name, []).append(len(self.epoch))
        self.epoch.append(epoch)

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items() if isinstance(values[-1], float))
        return f"<History of {len(self.epoch)} epochs{': ' + last if last else ''}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{epoch + 1}</td>{''.join(f'<td>{_shown(v)}</td>' for v in values)}</tr>" for epoch, values in self._rows()
        )
        return f"<table><tr><th>epoch</th>{''.join(f'<th>{name}</th>' for name in self.history)}</tr>{rows}</table>"

    def _rows(self) -> list[tuple[int, list[Any]]]:
        columns = [self._column(name) for name in self.history]
        return [(epoch, [column[i] for column in columns]) for i, epoch in enumerate(self.epoch)]

    def to_frame(self) -> Any:
        """The values as a pandas `DataFrame`, a row an epoch.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("History.to_frame() needs pandas: pip install pandas. history.history is a plain dict.") from error
        rows = [values for _, values in self._rows()]
        return pd.DataFrame(rows, columns=list(self.history), index=pd.Index(self.epoch, name="epoch"))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the values to a CSV file, a row an epoch, whole or not at all.

        Args:
            path: The file.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", *self.history])
        writer.writerows([epoch, *("" if v is None else v for v in values)] for epoch, values in self._rows())
        target = Path(path)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text.getvalue())
            os.replace(partial, target)
        except BaseException:
            os.unlink(partial)
            raise

    def plot(self, names: list[str] | None = None) -> Any:
        """Draw the curves, those of a name and its validation into one field.

        Args:
            names: Which; by default all that are numbers.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("History.plot() needs matplotlib: pip install matplotlib.") from error
        known = [n for n, values in self.history.items() if not n.startswith("val_") and isinstance(values[0], int | float)]
        chosen = known if names is None else names
        figure = Figure(figsize=(6, 2.5 * max(len(chosen), 1)), layout="constrained")
        for i, name in enumerate(chosen):
            axes = figure.add_subplot(len(chosen), 1, i + 1)
            for label in (name, f"val_{name}"):
                points = [(e + 1, v) for e, v in zip(self.epoch, self._column(label), strict=True) if v is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=label)
            axes.set_ylabel(name)
            axes.set_xlabel("epoch")
            axes.legend()
        return figure

    def _column(self, name: str) -> list[Any]:
        """The values of a name, one an epoch; None where it was not measured."""
        values = self.history.get(name, [])
        places = self._places.get(name, [])
        if len(places) != len(values):
            # Somebody else has written them into `history`: one an epoch, as Keras's callbacks do.
            places = list(range(len(values)))
        placed = dict(zip(places, values, strict=True))
        return [placed.get(i) for i in range(len(self.epoch))]


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
