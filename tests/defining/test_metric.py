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


def test_an_empty_batch_with_weights_changes_nothing():
    nothing = np.zeros((0, 1), "float32")
    for metric in [*METRICS, OfEntries()]:
        metric.reset_state()
        before = _updated(metric, (np.ones((2, 1)), np.ones((2, 1))))
        np.testing.assert_array_equal(_updated(metric, (nothing, nothing, np.zeros(0, "float32"))), before)


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


def test_a_single_batch_is_counted_exactly_beyond_2_to_the_24():
    count = 2**24 + 2**20 + 1
    metric = truths()
    metric.update_state(np.ones(count, "int32"), np.ones(count, "float32"))
    for high, low in (metric.variables[:2], metric.variables[2:]):
        assert float(high) + float(low) == count


def test_sums_of_integers_that_no_int32_holds_are_as_float32_rounds_them():
    metric = truths()
    metric.update_state(np.full(3, 2**31 - 2, "int32"), np.ones(3, "float32"))
    assert float(metric.result()["integers"]) == pytest.approx(3 * (2**31 - 2), rel=1e-6)


@kustom.metric(result=lambda booleans, integers: {"booleans": booleans, "integers": integers})
def truths(y_true, y_pred):
    return kustom.Sums(booleans=ops.equal(y_true, y_true), integers=y_true)


def test_a_mask_counts_in_sums_of_integers(masked):
    metric = truths()
    metric.update_state(np.array([[5, 7, 2]]), masked(np.ones((1, 3)), np.array([[True, False, True]])))
    assert {name: float(value) for name, value in metric.result().items()} == {"booleans": 2.0, "integers": 7.0}


@kustom.metric(result=lambda scale: scale)
def clashing(y_true, y_pred, *, scale=2.0):
    return kustom.Sums(scale=y_pred)


@kustom.metric(result=lambda total, missing: total)
def asking_for_more(y_true, y_pred, *, scale=2.0):
    return kustom.Sums(total=y_pred)


@kustom.metric(result=lambda total: total)
def giving_more(y_true, y_pred, *, scale=2.0):
    return kustom.Sums(total=y_pred, rest=y_pred)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (clashing, "'scale' has the name of a setting"),
        (asking_for_more, "asks for 'missing'"),
        (giving_more, "does not take .*'rest'"),
    ],
)
def test_sums_that_do_not_fit_the_formula_are_refused_with_both_lists_of_names(make, says):
    with pytest.raises(errors.ReturnError, match=rf"{says}.*The sums are \w+.*the settings are scale.*in result= takes \w+"):
        make().update_state([[1.0]], [[2.0]])


ONE_AND_THREE = np.array([1.0, 3.0])


@kustom.metric
def weighed_by_array(y_true, y_pred, *, w=ONE_AND_THREE):
    return w * ops.abs(ops.subtract(y_true, y_pred))


def test_metrics_with_arrays_as_settings_merge():
    one, other = weighed_by_array(), weighed_by_array()
    for metric in (one, other):
        metric.update_state([[1.0, 1.0]], [[2.0, 2.0]])
    one.merge_state([other])
    assert float(one.result()) == 2.0
    with pytest.raises(errors.ReturnError, match="cannot take in"):
        one.merge_state([weighed_by_array(w=np.array([1.0, 2.0]))])


TARGETS = [((4, 1, 1), (4,)), ((3, 3), (3,)), ((3, 1, 1, 1), (3, 1))]


@pytest.mark.parametrize(("true", "pred"), TARGETS, ids=str)
@pytest.mark.parametrize("make", [precision, rmse, mean_error])
def test_targets_with_more_axes_than_the_predictions_are_refused(make, true, pred):
    with pytest.raises(errors.ShapeError, match="more axes than the predictions"):
        make().update_state(np.zeros(true), np.zeros(pred))


# --- a class of its own


def _absolute(y_true, y_pred):
    return ops.abs(ops.subtract(y_true, y_pred))


class Weighted(keras.metrics.Metric):
    """A weighted mean of what `values` returns, weighed in the simplest way."""

    def setup(self):
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, targets, predictions, sample_weight=None):
        values = self.values(targets, predictions)
        weight = ops.ones_like(values) if sample_weight is None else sample_weight
        self.total.assign_add(ops.sum(values * weight))
        self.count.assign_add(ops.sum(weight * ops.ones_like(values)))

    def result(self):
        return ops.divide_no_nan(self.total, self.count)


@kustom.part
class OfEntries(Weighted):
    def values(self, targets, predictions):
        return _absolute(targets, predictions)


@kustom.part
class OfMeans(Weighted):
    def values(self, targets, predictions):
        return ops.mean(_absolute(targets, predictions), axis=-1)


@kustom.part
class OfFirst(Weighted):
    def values(self, targets, predictions):
        return _absolute(targets, predictions)[..., 0]


@kustom.part
class OfOtherNames(keras.metrics.Metric):
    def setup(self):
        self.error = self.add_variable((), "zeros", name="error")

    def update_state(self, targets, predictions, sample_weight=None):
        self.error.assign(ops.mean(ops.square(ops.subtract(targets, predictions))))

    def result(self):
        return self.error


def _squares(y_true, y_pred):
    return ops.square(ops.subtract(y_true, y_pred))


@kustom.part
class Wrapping(keras.metrics.MeanMetricWrapper):
    def __init__(self, name="wrapping", dtype=None):
        super().__init__(_squares, name=name, dtype=dtype)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


@pytest.mark.parametrize("make", [OfOtherNames, Wrapping])
def test_flat_targets_are_aligned_whatever_they_are_called_and_whoever_wrote_the_update(make):
    metric = make()
    metric.update_state(np.array([0.0, 1.0, 1.0, 0.0]), np.array([[0.1], [0.9], [0.8], [0.3]]))
    assert float(metric.result()) == pytest.approx(0.0375)


def test_a_metric_of_one_tensor_is_handed_what_it_is_given():
    @kustom.part
    class Largest(keras.metrics.Metric):
        def setup(self):
            self.largest = self.add_variable((), "zeros", name="largest")

        def update_state(self, values, sample_weight=None):
            self.largest.assign(ops.maximum(self.largest, ops.max(values)))

        def result(self):
            return self.largest

    metric = Largest()
    metric.update_state([1.0, 4.0])
    assert float(metric.result()) == 4.0


STEPS = np.arange(9.0, dtype="float32")


@pytest.mark.parametrize("make", [OfEntries, OfMeans, OfFirst])
@pytest.mark.parametrize("true", [(3,), (3, 1)], ids=str)
def test_weights_pick_samples_whether_values_are_of_entries_or_of_samples(make, true):
    metric = make()
    metric.update_state(np.zeros(true), [[1.0], [5.0], [9.0]], sample_weight=[1.0, 0.0, 0.0])
    assert float(metric.result()) == 1.0
    metric.reset_state()
    # As many classes as samples, so that a weight of the wrong axis would fit.
    metric.update_state(np.zeros((3, 3)), STEPS.reshape(3, 3), sample_weight=[0.0, 2.0, 0.0])
    assert float(metric.result()) == (3.0 if make is OfFirst else 4.0)
    metric.reset_state()
    metric.update_state(np.zeros((3, 3, 1)), STEPS.reshape(3, 3, 1), sample_weight=np.eye(3)[:, [1, 0, 2]])
    assert float(metric.result()) == (1.0 + 3.0 + 8.0) / 3


def test_weights_pick_samples_in_fit_after_a_fit_without():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.0), "mse", weighted_metrics=[OfEntries(name="error")])
    x = np.array([[1.0], [5.0], [9.0]], "float32")
    model.fit(x, x * 0, verbose=0)
    assert model.fit(x, x * 0, sample_weight=np.array([1.0, 0.0, 0.0]), verbose=0).history["error"] == [1.0]


def test_weights_of_entries_beside_values_of_samples_are_refused():
    with pytest.raises(errors.ShapeError, match="cannot weigh its values"):
        OfMeans().update_state(np.zeros((3, 3)), np.ones((3, 3)), sample_weight=np.eye(3))


def test_trying_the_weights_leaves_nothing_behind_in_the_metric():
    @kustom.part
    class Counting(Weighted):
        def setup(self):
            super().setup()
            self.updates = 0

        def values(self, targets, predictions):
            self.updates += 1
            return _absolute(targets, predictions)

    metric = Counting()
    metric.update_state([[0.0], [0.0]], [[1.0], [2.0]], sample_weight=[1.0, 1.0])
    assert metric.updates == 1
    assert float(metric.total) == 3.0


@kustom.part
class Unweighted(keras.metrics.Metric):
    def setup(self):
        self.total = self.add_variable((), "zeros", name="total")

    def update_state(self, y_true, y_pred):
        self.total.assign_add(ops.sum(_absolute(y_true, y_pred)))

    def result(self):
        return self.total


def test_a_metric_without_sample_weight_refuses_weights_and_masks(masked):
    for give in (
        lambda metric: metric.update_state([[0.0]], [[1.0]], sample_weight=[0.0]),
        lambda metric: metric.update_state([[0.0]], [[1.0]], [0.0]),
        lambda metric: metric.update_state(np.zeros((1, 2, 1)), masked([[[1.0], [2.0]]], [[True, False]])),
    ):
        with pytest.raises(errors.DefinitionError, match="sample_weight=None"):
            give(Unweighted())
    metric = Unweighted()
    metric.update_state([[0.0]], [[1.0]], sample_weight=None)
    assert float(metric.result()) == 1.0
