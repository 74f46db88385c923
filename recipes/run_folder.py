"""What a run leaves behind: a new folder, and files in it that are whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["new_folder", "whole", "write_history", "write_json", "write_learning_curve"]

TRAIN, VALIDATION, TEXT, GRID = "#8fb8de", "#1f5a96", "#333333", "#e4e4e4"


def new_folder(out: Path | None, name: str) -> Path:
    """Make the folder `out`, or `runs/<name>-<time>` where none is named.

    Raises:
        FileExistsError: `out` is not empty: a run is not written over another.
        OSError: It cannot be made.
    """
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise FileExistsError(f"{out} is not empty")
        return out
    stem = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, attempt = stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            attempt += 1
            folder = stem.with_name(f"{stem.name}-{attempt}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` once it is complete; the same suffix, since libraries read formats off it."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict that people will read."""
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_history(path: Path, history: dict[str, list[float]]) -> None:
    """Write one line an epoch, counted from 1."""
    frame = pd.DataFrame(history)
    frame.insert(0, "epoch", range(1, len(frame) + 1))
    with whole(path) as partial:
        frame.to_csv(partial, index=False)


def write_learning_curve(path: Path, history: dict[str, list[float]], *, best_epoch: int, title: str, subtitle: str) -> None:
    """Draw training and validation loss an epoch, and mark the epoch whose weights were kept.

    A figure of its own, not pyplot's: no window system, and nothing shared with whoever imports this.
    """
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    train, validation = history["loss"], history["val_loss"]
    epochs = range(1, len(train) + 1)
    # A single epoch is a point, which a line does not show.
    shared: dict[str, Any] = {"linewidth": 2, "marker": "o" if len(train) == 1 else None}
    axes.plot(epochs, train, color=TRAIN, label="training", **shared)
    axes.plot(epochs, validation, color=VALIDATION, label="validation", **shared)
    kept = {"color": VALIDATION, "markersize": 9, "markeredgecolor": "white", "markeredgewidth": 1.5}
    axes.plot([best_epoch], [validation[best_epoch - 1]], "o", label=f"kept: epoch {best_epoch}", **kept)
    axes.set_xlim(0.5, len(train) + 0.5)
    _dress(axes)
    axes.set_title(f"{title}\n", loc="left", fontsize=13, fontweight="bold", color=TEXT)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9.5, color=TEXT)
    with whole(path) as partial:
        figure.savefig(partial)


def _dress(axes: Axes) -> None:
    axes.set_xlabel("epoch", color=TEXT)
    axes.set_ylabel("loss (Huber, with penalties)", color=TEXT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=TEXT, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, labelcolor=TEXT)
