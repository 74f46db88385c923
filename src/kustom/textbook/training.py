"""Section 12.3.9: what the training loop that is written out needs, a batch drawn by chance and a status bar.

Both belong outside of a compiled step: traced, a batch would be drawn once and for all, and a bar printed once. `kustom.Loop`
has them built in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

import kustom

__all__ = ["print_status_bar", "random_batch"]


def random_batch(X: Any, y: Any, batch_size: int = 32, *, rng: np.random.Generator | None = None) -> tuple[Any, Any]:
    """Rows drawn by chance from all of them, each as likely as any other, whether it was drawn before or not.

    The chapter's draws cannot be repeated, take columns of a pandas table for rows, and pass over targets of another length.
    `kustom.Loop(step).fit(X, y, shuffle="replacement")` draws its batches so; by default a loop permutes the rows, so that an
    epoch has each of them once.

    Args:
        X: The inputs, an array, a tensor or a pandas table with a first axis of samples.
        y: The targets, with as many samples.
        batch_size: How many rows.
        rng: What draws them; None: NumPy's global generator, which `keras.utils.set_random_seed` seeds.

    Returns:
        The rows of `X` and those of `y`, of the kinds that were given.

    Raises:
        DataError: `X` and `y` differ in length, or there are no rows.

    Example:
        >>> import numpy as np, kustom
        >>> X = np.arange(100)[:, None]
        >>> X_batch, y_batch = kustom.textbook.random_batch(X, 2 * X, batch_size=4, rng=np.random.default_rng(0))
        >>> X_batch.ravel().tolist(), y_batch.ravel().tolist()
        ([85, 63, 51, 26], [170, 126, 102, 52])
    """
    if len(X) != len(y) or not len(X):
        raise kustom.errors.DataError(f"X has {len(X)} rows and y has {len(y)}; expected as many, and at least one.")
    rows = np.random.randint(len(X), size=batch_size) if rng is None else rng.integers(len(X), size=batch_size)
    return _taken(X, rows), _taken(y, rows)


def _taken(data: Any, rows: np.ndarray) -> Any:
    if ops.is_tensor(data):
        return ops.take(data, rows, axis=0)
    return data.iloc[rows] if hasattr(data, "iloc") else np.asarray(data)[rows]


def print_status_bar(
    iteration: int, total: int, loss: keras.metrics.Metric, metrics: Sequence[keras.metrics.Metric] | None = None
) -> None:
    """Print how far an epoch is and how the loss and the metrics stand, over what was printed last; the end keeps its line.

    The chapter's bar is not seen in a terminal before its end, since nothing flushes it, leaves digits of a longer line
    before it, and takes no metric that has several values. The status line of `kustom.Loop` also says how fast it goes, and
    costs nothing in between.

    Args:
        iteration: How many samples, or steps, are done.
        total: How many there are; from there on each call ends its line.
        loss: The mean loss.
        metrics: What else to show.

    Example:
        >>> import keras, kustom
        >>> loss, mae = keras.metrics.Mean(name="loss"), keras.metrics.MeanAbsoluteError(name="mae")
        >>> loss.update_state([1.0, 9.0])
        >>> mae.update_state([0.0, 0.0], [1.0, 3.0])
        >>> kustom.textbook.print_status_bar(2, 2, loss, [mae])  # doctest: +NORMALIZE_WHITESPACE
        2/2 - loss: 5.0000 - mae: 2.0000
    """
    shown = " - ".join(f"{name}: {value}" for metric in [loss, *(metrics or [])] for name, value in _results(metric))
    # Blanks over what a line with longer numbers has left.
    print(f"\r{iteration}/{total} - {shown}".ljust(79), end="" if iteration < total else "\n", flush=True)


def _results(metric: keras.metrics.Metric) -> list[tuple[str, str]]:
    result = metric.result()
    named = result if isinstance(result, Mapping) else {metric.name: result}
    return [(name, _four_digits(ops.convert_to_numpy(value))) for name, value in named.items()]


def _four_digits(value: np.ndarray) -> str:
    return f"{value:.4f}" if not value.ndim else f"[{' '.join(map(_four_digits, value))}]"
