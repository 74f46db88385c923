"""The helpers of the chapter's training loop: rows drawn by chance, and a status bar."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops

from kustom.errors import DataError
from kustom.textbook import print_status_bar, random_batch

X = np.arange(40, dtype="float32").reshape(20, 2)
Y = X[:, 0] / 2


@pytest.mark.parametrize("kind", [np.asarray, ops.convert_to_tensor, np.ndarray.tolist])
def test_a_batch_has_rows_that_belong_together(kind):
    x, y = random_batch(kind(X), kind(Y), 50, rng=np.random.default_rng(0))
    assert tuple(x.shape) == (50, 2)
    assert ops.is_tensor(x) is (kind is ops.convert_to_tensor)
    x, y = ops.convert_to_numpy(x), ops.convert_to_numpy(y)
    np.testing.assert_array_equal(x[:, 0] / 2, y)
    # Of 20 rows, 50 draws miss a few and repeat many.
    assert 10 < len(np.unique(y)) < 20


def test_a_table_gives_rows_not_columns():
    x, y = random_batch(pd.DataFrame(X, columns=["a", "b"]), pd.Series(Y), 5)
    assert list(x.columns) == ["a", "b"]
    np.testing.assert_array_equal(x["a"] / 2, y)


def test_a_batch_is_as_large_as_asked_for_and_repeats_with_the_seed():
    first, again = (random_batch(X, Y, rng=np.random.default_rng(3))[1] for _ in range(2))
    assert len(first) == 32
    np.testing.assert_array_equal(first, again)
    keras.utils.set_random_seed(3)
    first, second = (random_batch(X, Y)[1] for _ in range(2))
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(random_batch(X, Y)[1], first)
    assert not np.array_equal(first, second)


def test_every_row_is_as_likely_as_any_other():
    _, y = random_batch(X, Y, 20_000, rng=np.random.default_rng(0))
    counts = np.unique(y, return_counts=True)[1]
    assert len(counts) == 20
    # Five standard deviations.
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000 * 0.95))


@pytest.mark.parametrize("y", [Y[:-1], np.concatenate([Y, Y])])
def test_targets_of_another_length_are_refused(y):
    with pytest.raises(DataError, match="X has 20 rows and y has"):
        random_batch(X, y)
    with pytest.raises(DataError, match="at least one"):
        random_batch(X[:0], Y[:0])


def test_the_bar_is_written_over_and_ends_its_line_at_the_end(capsys):
    loss, mae = keras.metrics.Mean(), keras.metrics.MeanAbsoluteError(name="mae")
    loss(1.5)
    mae([0.0], [12.0])
    print_status_bar(32, 64, loss, [mae])
    mae.reset_state()
    print_status_bar(64, 64, loss, [mae])
    out = capsys.readouterr().out
    first, last = out.removesuffix("\n").split("\r")[1:]
    assert first.rstrip() == "32/64 - mean: 1.5000 - mae: 12.0000"
    assert last.rstrip() == "64/64 - mean: 1.5000 - mae: 0.0000"
    assert len(last) >= len(first.rstrip())
    assert out.count("\n") == 1


@pytest.mark.parametrize(("iteration", "total"), [(0, 0), (70, 64)])
def test_the_end_may_be_none_or_overstepped(iteration, total, capsys):
    print_status_bar(iteration, total, keras.metrics.Mean(name="loss"))
    assert capsys.readouterr().out.rstrip(" ").endswith("\n")


def test_a_metric_of_several_values_is_shown_whole(capsys):
    f1 = keras.metrics.F1Score(name="f1")
    f1.update_state(np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 1, 2, 1]])
    print_status_bar(1, 1, keras.metrics.Mean(name="loss"), [f1])
    assert "f1: [1.0000 0.6667 0.6667]" in capsys.readouterr().out
