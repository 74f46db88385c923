"""A decorated metric streams: any split into batches gives the same result."""

from __future__ import annotations

import copy
import pickle

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import kustom
from kustom import errors


@kustom.metric
def mean_error(y_true, y_pred):
    return ops.abs(ops.subtract(y_true, y_pred))


@kustom.metric
def precision(y_true, y_pred, *, threshold=0.5):
    predicted = y_pred > threshold
    return kustom.Ratio(ops.logical_and(ops.cast(y_true, "bool"), predicted), predicted)


@kustom.metric
def recall(y_true, y_pred, *, threshold=0.5):
    positive = ops.cast(y_true, "bool")
    return kustom.Ratio(ops.logical_and(positive, y_pred > threshold), positive)


@kustom.metric(result=lambda squares, count: ops.sqrt(ops.divide_no_nan(squares, count)))
def rmse(y_true, y_pred):
    squares = ops.square(ops.subtract(y_true, y_pred))
    return kustom.Sums(squares=squares, count=ops.ones_like(squares))


def _r2(residual, total, squares, count):
    return 1 - ops.divide_no_nan(residual, squares - ops.divide_no_nan(ops.square(total), count))


@kustom.metric(result=_r2)
def r2(y_true, y_pred):
    y_true = ops.cast(y_true, y_pred.dtype)
    residual = ops.square(y_true - y_pred)
    return kustom.Sums(residual=residual, total=y_true, squares=ops.square(y_true), count=ops.ones_like(y_true))


@kustom.metric(result=lambda tp, fp, fn, beta: ops.divide_no_nan((1 + beta**2) * tp, (1 + beta**2) * tp + beta**2 * fn + fp))
def f_beta(y_true, y_pred, *, beta: float = 1.0):
    positive, predicted = ops.cast(y_true, "bool"), y_pred > 0.5
    return kustom.Sums(
        tp=ops.logical_and(positive, predicted),
        fp=ops.logical_and(ops.logical_not(positive), predicted),
        fn=ops.logical_and(positive, ops.logical_not(predicted)),
    )


@kustom.metric(result=lambda hits, count: ops.divide_no_nan(hits, count))
def recall_by_class(y_true, y_pred):
    hit = ops.cast(ops.equal(ops.argmax(y_true, -1), ops.argmax(y_pred, -1)), "float32")
    return kustom.Sums(hits=hit[..., None] * y_true, count=y_true, keep=1)


@kustom.metric(result=lambda cells: cells)
def confusion(y_true, y_pred, *, classes: int):
    true = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), classes)
    predicted = ops.one_hot(ops.argmax(y_pred, -1), classes)
    return kustom.Sums(cells=true[:, :, None] * predicted[:, None, :], keep=2)


@kustom.metric(result=lambda total, count: {"average": total / count, "seen": count})
def named(y_true, y_pred):
    return kustom.Sums(total=ops.subtract(y_pred, y_true), count=ops.ones_like(y_pred))


def _updated(metric, *batches):
    for batch in batches:
        metric.update_state(*batch)
    return np.asarray(keras.ops.convert_to_numpy(metric.result()))


BATCHES = [
    ([0, 1, 1, 1, 0, 1, 0, 1], [1.0, 1, 0, 1, 0, 1, 0, 1]),
    ([0, 1, 0, 0, 1, 0, 1, 1], [1.0, 0, 1, 1, 0, 0, 0, 0]),
]


def test_a_ratio_streams():
    metric = precision()
    assert _updated(metric, BATCHES[0]) == pytest.approx(0.8)
    assert _updated(metric, BATCHES[1]) == pytest.approx(0.5)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_called_with_data_it_is_the_function():
    made = precision(np.array([1, 0]), np.array([1.0, 1.0]))
    assert isinstance(made, kustom.Ratio)
    assert repr(made).startswith("Ratio(")
    assert repr(kustom.Sums(a=1, keep=1)) == "Sums(a=1, keep=1)"
    np.testing.assert_allclose(mean_error([0.0], [2.0]), [2.0])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (precision(threshold=0.3), lambda: keras.metrics.Precision(thresholds=0.3)),
        (recall(), keras.metrics.Recall),
        (mean_error(), keras.metrics.MeanAbsoluteError),
        (rmse(), keras.metrics.RootMeanSquaredError),
        (r2(), keras.metrics.R2Score),
        (f_beta(beta=2), lambda: keras.metrics.FBetaScore(beta=2.0, threshold=0.5, average="micro")),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_it_equals_keras_own(ours, theirs):
    theirs, rng = theirs(), np.random.default_rng(0)
    for n in (7, 3, 5):
        y_true, y_pred = rng.integers(0, 2, size=(n, 1)).astype("float32"), rng.uniform(size=(n, 1)).astype("float32")
        weight = rng.uniform(size=n).astype("float32")
        if isinstance(theirs, keras.metrics.FBetaScore):
            weight = None
        ours.update_state(y_true, y_pred, sample_weight=weight)
        theirs.update_state(y_true, y_pred, sample_weight=weight)
    assert float(ours.result()) == pytest.approx(float(theirs.result()), rel=1e-4)


METRICS = [mean_error(), precision(), rmse(), r2(), f_beta()]


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.sampled_from([1, 4, 7, 10, 13, 19]), max_size=3), seed=st.integers(0, 10**6))
def test_any_split_into_batches_gives_the_same_result(metric, cuts, seed):
    rng = np.random.default_rng(seed)
    y_true, y_pred = rng.integers(0, 2, size=(20, 1)).astype("float32"), rng.uniform(size=(20, 1)).astype("float32")
    metric.reset_state()
    whole = _updated(metric, (y_true, y_pred))
    metric.reset_state()
    split = _updated(metric, *zip(np.split(y_true, sorted(cuts)), np.split(y_pred, sorted(cuts)), strict=True))
    np.testing.assert_allclose(whole, split, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_weight_2_is_the_sample_twice_and_weight_0_its_absence(metric):
    rng = np.random.default_rng(1)
    y_true, y_pred = rng.integers(0, 2, size=(6, 1)).astype("float32"), rng.uniform(size=(6, 1)).astype("float32")
    metric.reset_state()
    weighted = _updated(metric, (y_true, y_pred, np.array([1, 2, 1, 0, 1, 2], "float32")))
    rows = [0, 1, 1, 2, 4, 5, 5]
    metric.reset_state()
    repeated = _updated(metric, (y_true[rows], y_pred[rows]))
    np.testing.assert_allclose(weighted, repeated, rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_two_merge_to_the_metric_of_the_union(metric):
    rng = np.random.default_rng(2)
    batches = [(rng.integers(0, 2, size=(5, 1)), rng.uniform(size=(5, 1)).astype("float32")) for _ in range(3)]
    twins = [type(metric)() for _ in range(3)]
    for twin, batch in zip(twins, batches, strict=True):
        twin.update_state(*batch)
    twins[0].merge_state(twins[1:])
    metric.reset_state()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(twins[0].result()), _updated(metric, *batches), rtol=1e-5)


def test_merging_into_an_unused_metric_works():
    other = rmse()
    other.update_state([[1.0]], [[3.0]])
    metric = rmse()
    metric.merge_state([other])
    assert float(metric.result()) == 2.0


def test_only_the_same_metric_merges():
    with pytest.raises(errors.ReturnError, match="cannot take in"):
        precision().merge_state([recall()])
    with pytest.raises(errors.ReturnError, match="cannot take in"):
        precision(threshold=0.1).merge_state([precision()])


@pytest.mark.parametrize("metric", [*METRICS, recall_by_class(), confusion(classes=3), named()], ids=lambda m: m.name)
def test_before_any_sample_the_result_is_0_and_asking_changes_nothing(metric):
    fresh = type(metric).from_config(metric.get_config())
    for _ in range(2):
        assert np.all(keras.ops.convert_to_numpy(fresh.result()) == 0)


def test_a_formula_without_samples_is_0_not_nan():
    metric = named()
    metric.update_state([[1.0]], [[2.0]], sample_weight=[0.0])
    assert {name: float(value) for name, value in metric.result().items()} == {"average": 0.0, "seen": 0.0}


def test_a_value_a_class():
    metric = recall_by_class()
    metric.update_state(np.eye(3), np.eye(3)[[0, 0, 2]])
    metric.update_state(np.eye(3), np.eye(3)[[0, 1, 2]])
    np.testing.assert_allclose(metric.result(), [1.0, 0.5, 1.0])


def test_a_confusion_matrix():
    metric = confusion(classes=2)
    metric.update_state([0, 0, 1], [[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])
    metric.update_state([1], [[0.9, 0.1]], sample_weight=[2.0])
    np.testing.assert_allclose(metric.result(), [[1, 1], [2, 1]])


@pytest.mark.parametrize("dtype", ["int32", "bool", "float32"])
def test_targets_of_any_dtype(dtype):
    for metric in METRICS:
        metric.reset_state()
        metric.update_state(np.array([[1], [0], [1]]).astype(dtype), np.array([[0.9], [0.2], [0.3]], "float32"))
        assert np.isfinite(float(metric.result()))


def test_counts_are_exact_beyond_2_to_the_24():
    metric = confusion(classes=1)
    metric.update_state([0], [[1.0]], sample_weight=[float(2**24)])
    for _ in range(5):
        metric.update_state([0], [[1.0]])
    metric.update_state([0], [[1.0]], sample_weight=[float(2**24)])
    high, low = (np.float64(keras.ops.convert_to_numpy(v).item()) for v in metric.variables)
    assert high + low == 2**25 + 5


def test_counts_are_exact_when_compiled(trip):
    x = np.ones((8, 1), "float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    metric = mean_error()
    model.compile("sgd", "mse", weighted_metrics=[metric], jit_compile=keras.backend.backend() == "jax" or "auto")
    weights = np.array([2.0**24, *[1.0] * 7], "float32")
    model.evaluate(x, x * 0, sample_weight=weights, batch_size=1, verbose=0)
    high, low = (np.float64(keras.ops.convert_to_numpy(v).item()) for v in metric.variables[2:])
    assert high + low == 2**24 + 7


def test_a_mask_is_honoured(masked):
    metric = mean_error()
    metric.update_state(np.zeros((1, 3, 1)), masked([[[1.0], [np.nan], [3.0]]], [[True, False, True]]))
    assert float(metric.result()) == 2.0


def test_a_nan_of_no_weight_has_no_effect():
    for metric in METRICS:
        metric.reset_state()
        metric.update_state([[1.0], [0.0]], [[0.9], [np.nan]], sample_weight=[1.0, 0.0])
        assert np.isfinite(float(metric.result()))


def test_weights_a_time_step():
    metric = mean_error()
    metric.update_state(np.zeros((1, 2, 1)), [[[1.0], [5.0]]], sample_weight=[[1.0, 0.0]])
    assert float(metric.result()) == 1.0


def test_flat_targets_are_aligned():
    metric = precision()
    metric.update_state(np.array([1, 0, 1]), np.array([[0.9], [0.9], [0.1]]))
    assert float(metric.result()) == 0.5


def test_result_is_a_tensor_after_and_before():
    metric = precision()
    assert keras.ops.is_tensor(metric.result())
    metric.update_state([1.0], [1.0])
    assert keras.ops.is_tensor(metric.result())


def test_compile_takes_it_and_the_file_too(trip):
    x, y = np.linspace(-1, 1, 12, dtype="float32").reshape(-1, 1), (np.arange(12) % 2).reshape(-1, 1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "mse", metrics=[precision, precision(threshold=0.1, name="low"), rmse, f_beta(beta=2)])
    history = model.fit(x, y, batch_size=5, epochs=2, verbose=0, validation_data=(x, y)).history
    assert {"precision", "low", "rmse", "f_beta", "val_rmse"} <= history.keys()
    loaded = trip(model)
    ours, theirs = (m.evaluate(x, y, batch_size=5, verbose=0, return_dict=True) for m in (model, loaded))
    assert ours == pytest.approx(theirs)
    assert loaded.evaluate(x, y, batch_size=12, verbose=0, return_dict=True)["rmse"] == pytest.approx(theirs["rmse"])


def test_metrics_pickle_and_copy():
    for twin in (pickle.loads(pickle.dumps(precision(threshold=0.2))), copy.deepcopy(precision(threshold=0.2))):
        assert twin.get_config() == precision(threshold=0.2).get_config()


def test_wrong_returns_are_refused():
    @kustom.metric
    def a_list(y_true, y_pred):
        return [1.0]

    @kustom.metric
    def without_formula(y_true, y_pred):
        return kustom.Sums(total=y_pred)

    @kustom.metric(result=lambda total: total)
    def without_sums(y_true, y_pred):
        return y_pred

    @kustom.metric(result=lambda total: total)
    def summed(y_true, y_pred):
        return kustom.Sums(total=ops.sum(y_pred))

    @kustom.metric
    def averaged(y_true, y_pred):
        return ops.mean(y_pred)

    batch = (np.ones((2, 1)), np.ones((2, 1)))
    for part, message in (
        (a_list, "returned list"),
        (without_formula, "Give the formula"),
        (without_sums, "kustom.Sums"),
    ):
        with pytest.raises(errors.ReturnError, match=message):
            part().update_state(*batch)
    for part in (summed, averaged):
        with pytest.raises(errors.ShapeError, match=r"the shape \(\)"):
            part().update_state(*batch)


def test_sums_must_be_the_same_for_each_batch():
    metric = recall_by_class()
    metric.update_state(np.eye(3), np.eye(3))
    with pytest.raises(errors.ShapeError, match="must be the same for each batch"):
        metric.update_state(np.eye(2), np.eye(2))


def test_sums_say_what_they_take():
    with pytest.raises(errors.DefinitionError, match="no sum"):
        kustom.Sums()
    with pytest.raises(errors.DefinitionError, match="keep="):
        kustom.Sums(keep=-1, a=1)
