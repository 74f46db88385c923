"""A decorated loss: the function where it gets data, a `keras.losses.Loss` where it gets settings."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors

REDUCTIONS = ["sum_over_batch_size", "mean_with_sample_weight", "sum", "none", None]


@kustom.loss
def huber(y_true, y_pred, *, threshold: float = 1.0):
    """The Huber loss of the tests."""
    error = ops.abs(ops.subtract(y_true, y_pred))
    return ops.where(error < threshold, ops.square(error) / 2, threshold * error - threshold**2 / 2)


@kustom.loss
def squared(y_true, y_pred):
    return ops.square(y_true - y_pred)


@kustom.loss
def logarithmic(y_true, y_pred):
    return ops.square(ops.log(y_true) - ops.log(y_pred))


@kustom.loss
def sparse(y_true, y_pred):
    return -ops.sum(ops.one_hot(ops.cast(y_true, "int32"), y_pred.shape[-1]) * ops.log(y_pred), axis=-1)


@kustom.loss
def label(y_true, y_pred):
    return ops.cast(ops.equal(y_true[..., 0], 16777217), "float32") + 0 * y_pred[..., 0]


@kustom.loss
def scalar(y_true, y_pred):
    return ops.mean(ops.square(ops.subtract(y_true, y_pred)))


@kustom.loss
def pulled(y_true, y_pred, *, towards: np.ndarray):
    return ops.square(y_pred - towards) + 0 * ops.cast(y_true, y_pred.dtype)


SEEN = []
BACKEND_ERRORS = ()
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    BACKEND_ERRORS = (tf.errors.InvalidArgumentError,)


@kustom.loss
def spying(y_true, y_pred):
    SEEN.append((keras.backend.standardize_dtype(y_true.dtype), keras.backend.standardize_dtype(y_pred.dtype)))
    return ops.square(y_pred)


def test_called_with_data_it_is_the_function():
    value = huber(np.zeros((2, 2)), np.array([[0.5, 3.0], [0.0, 1.0]]))
    np.testing.assert_allclose(value, [[0.125, 2.5], [0.0, 0.5]])


def test_data_may_come_by_name_and_with_settings_beside():
    np.testing.assert_allclose(huber(y_true=[0.0], y_pred=[3.0], threshold=2.0), [4.0])


def test_called_with_settings_it_is_a_loss():
    part = huber(threshold=2.0)
    assert isinstance(part, keras.losses.Loss)
    assert part.threshold == 2.0
    assert repr(part) == "huber(threshold=2.0)"
    assert isinstance(huber(), keras.losses.Loss)


def test_fn_is_the_plain_function():
    assert inspect.isfunction(huber.fn)
    assert huber.fn.__name__ == "huber"


def test_docstring_and_signature_are_the_functions():
    assert huber.__doc__ == "The Huber loss of the tests."
    assert list(inspect.signature(huber).parameters) == ["y_true", "y_pred", "threshold"]
    assert "threshold" in inspect.signature(huber.__init__).parameters
    assert huber.__name__ == "huber"
    assert huber.__module__ == __name__


def test_equal_settings_give_equal_configs():
    assert huber(threshold=2).get_config() == huber(threshold=2.0).get_config()
    assert huber(threshold=2).get_config() != huber(threshold=3).get_config()


def test_config_holds_keras_own_arguments():
    part = huber(threshold=2.0, name="mine", reduction="sum", dtype="float64")
    again = huber.from_config(part.get_config())
    assert (again.name, again.reduction, again.dtype, again.threshold) == ("mine", "sum", "float64", 2.0)


def test_a_setting_changed_later_is_the_one_saved():
    part = huber()
    part.threshold = 3
    assert huber.from_config(part.get_config()).threshold == 3.0


def test_parts_pickle_and_copy():
    for twin in (pickle.loads(pickle.dumps(huber(threshold=3.0))), copy.deepcopy(huber(threshold=3.0))):
        assert isinstance(twin, huber)
        assert twin.get_config() == huber(threshold=3.0).get_config()
    assert pickle.loads(pickle.dumps(huber)) is huber
    assert copy.deepcopy(huber) is huber


def test_a_part_can_be_subclassed():
    class Child(huber):
        pass

    assert Child(threshold=5.0).threshold == 5.0
    with pytest.raises(errors.ConfigError, match="no part itself"):
        keras.saving.serialize_keras_object(Child)


@pytest.mark.parametrize("loss", [huber, huber(threshold=2.0), [huber], {"out": huber(threshold=3.0)}], ids=repr)
def test_compile_takes_it_in_every_form_and_the_file_too(loss, trip):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32") * 3
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(inputs))
    model.compile("sgd", loss=loss)
    model.fit(x, x[:, :1], verbose=0)
    loaded = trip(model)
    np.testing.assert_allclose(model.evaluate(x, x[:, :1], verbose=0), loaded.evaluate(x, x[:, :1], verbose=0), rtol=1e-5)


def test_it_equals_keras_own():
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 4, 3)) * 3
    for reduction in REDUCTIONS:
        for weight in (None, rng.uniform(size=(5, 4))):
            ours = huber(threshold=1.5, reduction=reduction)(y_true, y_pred, sample_weight=weight)
            theirs = keras.losses.Huber(delta=1.5, reduction=reduction)(y_true, y_pred, sample_weight=weight)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_flat_targets_are_aligned():
    y_true, y_pred = np.array([0.0, 1.0, 1.0, 0.0]), np.array([[0.1], [0.9], [0.8], [0.3]])
    assert float(squared()(y_true, y_pred)) == pytest.approx(0.0375)
    assert tuple(squared(y_true, y_pred).shape) == (4, 1)


def test_flat_predictions_are_one_value_a_sample():
    value = squared(reduction=None)(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(value, [1.0, 4.0, 9.0])


@pytest.mark.parametrize("n", [3, 4])
def test_targets_are_never_broadcast_against_predictions(n):
    # 3 beside 4 the backend itself refuses; 4 beside 4 it would not.
    refusal = errors.ShapeError if n == 4 else (TypeError, ValueError, RuntimeError, *BACKEND_ERRORS)
    with pytest.raises(refusal):
        squared()(np.zeros(n, "float32"), np.zeros((n, 4), "float32"))


def test_labels_of_classes_are_taken():
    probabilities = np.full((3, 3), 1 / 3, "float32")
    assert float(sparse()(np.array([0, 1, 2]), probabilities)) == pytest.approx(np.log(3), rel=1e-5)


def test_numbers_of_samples_must_agree():
    with pytest.raises(errors.ShapeError, match="3 samples beside 2"):
        squared()(np.zeros((3, 1)), np.zeros((2, 1)))


def test_one_number_for_a_batch_is_refused():
    with pytest.raises(errors.ShapeError, match=r"returned the shape \(\) for y_pred \(4, 1\)"):
        scalar()(np.zeros((4, 1)), np.zeros((4, 1)))


def test_integer_labels_arrive_exact():
    assert float(label()(np.array([[16777217]]), np.ones((1, 1), "float32"))) == 1.0


def test_data_may_be_lists_variables_and_arrays():
    for y_pred in ([[1.0]], np.ones((1, 1)), keras.Variable(np.ones((1, 1), "float32")), ops.ones((1, 1))):
        assert float(keras.ops.stop_gradient(squared()([[3.0]], y_pred))) == 4.0


def test_floating_data_has_the_dtype_of_the_loss():
    SEEN.clear()
    spying(dtype="float16")(np.zeros((2, 1), "float64"), np.zeros((2, 1), "float32"))
    spying()(np.zeros((2, 1), "int32"), np.zeros((2, 1), "float64"))
    spying(np.zeros((2, 1), "bool"), np.zeros((2, 1), "float64"))
    assert SEEN == [("float16", "float16"), ("int32", "float32"), ("bool", "float32")]


def test_mixed_dtypes_work_or_say_how():
    y_true, y_pred = np.array([[1]]), np.array([[0.5]], "float32")
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(errors.DtypeMixError, match=r"ops.subtract\(a, b\).*ops.cast\(y_true"):
            squared()(y_true, y_pred)
    else:
        assert float(squared()(y_true, y_pred)) == 0.25


def test_booleans_are_refused_by_name_on_every_backend():
    with pytest.raises(errors.DtypeMixError, match=r"ops\.subtract"):
        squared()(np.array([[True]]), np.array([[False]]))


def test_an_error_of_the_functions_own_comes_through():
    @kustom.loss
    def broken(y_true, y_pred):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        broken()(np.array([[1]]), np.array([[1.0]]))


def test_a_nan_under_a_mask_has_no_effect(masked):
    y_true, y_pred = np.zeros((1, 3, 1)), masked([[[1.0], [np.nan], [3.0]]], [[True, False, True]])
    assert float(squared()(y_true, y_pred)) == 5.0


def test_all_masked_is_zero(masked):
    assert float(squared()(np.zeros((1, 2, 1)), masked([[[np.nan], [1.0]]], [[False, False]]))) == 0.0


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
def test_a_nan_of_no_weight_has_no_effect(shape):
    y_pred = np.array([[[1.0], [np.nan], [3.0]]])
    weight = np.array([1.0, 0.0, 1.0]).reshape(shape)
    assert float(squared(reduction="sum")(np.zeros((1, 3, 1)), y_pred, sample_weight=weight)) == 10.0


def test_a_nan_target_of_no_weight_has_no_effect():
    assert float(squared(reduction="sum")([[np.nan], [1.0]], [[5.0], [3.0]], sample_weight=[0.0, 1.0])) == 4.0


def test_what_replaces_a_masked_entry_is_in_the_domain(masked):
    y_true = np.array([[[1.0], [-1.0]]], "float32")
    assert float(logarithmic()(y_true, masked([[[1.0], [-5.0]]], [[True, False]]))) == 0.0


def test_weights_of_samples_reach_every_time_step():
    y_pred = np.array([[[1.0], [1.0]], [[3.0], [3.0]]])
    value = squared(reduction="sum")(np.zeros((2, 2, 1)), y_pred, sample_weight=np.array([1.0, 0.0]))
    assert float(value) == 2.0


def test_weights_of_entries_count_before_the_mean():
    value = squared(reduction=None)(np.zeros((2, 2)), np.ones((2, 2)), sample_weight=np.array([[1.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_allclose(value, [0.5, 1.0])


def test_a_mask_of_entries_means_over_what_is_left(masked):
    y_pred = masked([[1.0, np.nan, 3.0], [2.0, 2.0, np.nan]], [[True, False, True], [True, True, False]])
    assert float(squared()(np.zeros((2, 3)), y_pred)) == pytest.approx((1 + 9 + 4 + 4) / 4)


def test_weights_that_fit_nothing_are_refused():
    with pytest.raises(errors.ShapeError, match="sample_weight has the shape"):
        squared()(np.zeros((3, 1)), np.zeros((3, 1)), sample_weight=np.ones(2))


def test_an_array_setting_is_handed_over_as_a_tensor(trip):
    part = pulled(towards=np.array([1.0, 2.0]))
    assert float(part([[0, 0]], [[1.0, 4.0]])) == 2.0
    assert part.towards.dtype == np.float64
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", part)
    np.testing.assert_array_equal(trip(model).loss.towards, part.towards)
    assert trip(model).loss.towards.dtype == np.float64


def test_unknown_settings_are_named_with_what_there_is():
    with pytest.raises(errors.UnknownSettingError, match=r"no setting 'treshold'; it has threshold.*mean 'threshold'"):
        huber(treshold=2.0)
    with pytest.raises(errors.UnknownSettingError, match="no setting 'treshold'"):
        huber([0.0], [1.0], treshold=2.0)


def test_missing_settings_are_named():
    with pytest.raises(errors.MissingSettingError, match="pulled needs the setting towards"):
        pulled()


@pytest.mark.parametrize("value", ["two", None, True, [1.0], {}])
def test_values_of_another_kind_are_refused(value):
    with pytest.raises(errors.SettingError, match="the setting 'threshold' is a number"):
        huber(threshold=value)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0)])
def test_numbers_are_taken_by_kind(value):
    assert huber(threshold=value).threshold == 2.0
    assert type(huber(threshold=value).threshold) is float


def test_too_much_data_is_refused():
    with pytest.raises(errors.UnknownSettingError, match=r"takes 2 arguments by position \(y_true, y_pred\), not 3"):
        huber([0.0], [1.0], 2.0)
    with pytest.raises(errors.UnknownSettingError, match="without y_pred"):
        huber([0.0])
    with pytest.raises(errors.UnknownSettingError, match="y_true twice"):
        huber([0.0], y_true=[1.0])


def test_a_setting_may_be_a_tensor_beside_data():
    np.testing.assert_allclose(huber([0.0], [3.0], threshold=ops.convert_to_tensor(2.0)), [4.0])


def test_a_dict_of_predictions_is_refused():
    with pytest.raises(errors.ShapeError, match="not a dict"):
        squared()({"a": [1.0]}, {"a": [1.0]})


def test_bad_functions_are_refused_at_definition():
    with pytest.raises(errors.DefinitionError, match="a setting is keyword-only"):

        @kustom.loss
        def by_position(y_true, y_pred, threshold=1.0): ...

    with pytest.raises(errors.DefinitionError, match=r"a loss takes \(y_true, y_pred\)"):

        @kustom.loss
        def too_few(y_pred): ...

    for kind in (kustom.loss, kustom.metric):
        with pytest.raises(errors.DefinitionError, match=r"targets first: def reversed_names\(y_true, y_pred"):

            @kind
            def reversed_names(y_pred, y_true, *, q=0.5): ...

    with pytest.raises(errors.DefinitionError, match="name each setting"):

        @kustom.loss
        def open_ended(y_true, y_pred, **settings): ...

    with pytest.raises(errors.DefinitionError, match="no name to be saved under"):
        kustom.loss(lambda y_true, y_pred: y_pred)
    with pytest.raises(errors.DefinitionError, match=r"@kustom\.loss decorates a function"):
        kustom.loss(keras.losses.Huber)  # pyright: ignore
    with pytest.raises(errors.ReservedNameError, match="the setting 'reduction'"):

        @kustom.loss
        def reserved(y_true, y_pred, *, reduction="sum"): ...


def test_integer_defaults_take_any_number():
    @kustom.loss
    def power(y_true, y_pred, *, p=2):
        return ops.abs(ops.subtract(y_true, y_pred)) ** p

    assert power(p=1.5).p == 1.5
    assert type(power(p=3).p) is int


def test_the_gradient_under_a_mask_is_exactly_zero(masked):
    y_true = np.zeros((1, 3, 1), "float32")
    mask = np.array([[True, False, True]])

    def total(y_pred):
        from kustom.backends.keras import set_keras_mask

        y_pred = y_pred + 0.0
        set_keras_mask(y_pred, ops.convert_to_tensor(mask))
        return logarithmic(reduction="sum")(y_true + 1, y_pred)

    gradient = _gradient(total, np.array([[[2.0], [np.nan], [3.0]]], "float32"))
    assert gradient[0, 1, 0] == 0.0
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[0, [0, 2], 0] != 0)


def _gradient(function, x):
    """The gradient of a function of one tensor, by the backend's own means."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(ops.convert_to_tensor(x)))
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return np.asarray(tape.gradient(value, x))
    import torch

    x = torch.tensor(x, requires_grad=True)
    function(x).backward()
    return x.grad.numpy()


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 4)], ids=str)
def test_a_masked_sequence_trains_with_sample_weights(shape):
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(5, 3, mask_zero=True),
            keras.layers.LSTM(2, return_sequences=True),
        ]
    )
    model.compile("sgd", loss=squared())
    tokens = np.array([[1, 2, 0, 0], [1, 2, 3, 0]])
    history = model.fit(tokens, np.zeros((2, 4, 2), "float32"), sample_weight=np.ones(shape, "float32"), verbose=0).history
    assert np.isfinite(history["loss"][0])


@pytest.mark.parametrize("make", [squared, huber])
@pytest.mark.parametrize("reduction", ["sum", "none", "mean_with_sample_weight"])
def test_an_empty_batch_with_weights_is_as_one_of_keras(make, reduction):
    nothing = np.zeros((0, 1), "float32")
    ours = make(reduction=reduction)(nothing, nothing, sample_weight=np.zeros(0, "float32"))
    theirs = keras.losses.MeanSquaredError(reduction=reduction)(nothing, nothing, sample_weight=np.zeros(0, "float32"))
    np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))


def test_a_weight_an_entry_counts_in_the_mean_with_sample_weight():
    y_pred = np.array([[1.0, 3.0], [5.0, 7.0]], "float32")
    weight = np.array([[1.0, 0.0], [0.0, 3.0]], "float32")
    for loss in (absolute(reduction="mean_with_sample_weight"), AbsoluteLoss(reduction="mean_with_sample_weight")):
        assert float(loss(np.zeros((2, 2)), y_pred, sample_weight=weight)) == (1.0 + 3 * 7.0) / 4


@kustom.loss
def absolute(y_true, y_pred):
    return ops.abs(ops.subtract(y_true, y_pred))


@kustom.part
class AbsoluteLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.abs(ops.subtract(y_true, y_pred))


@kustom.loss
def misspelt(y_true, y_pred):
    return undefined_name * y_pred  # noqa: F821  # pyright: ignore


@kustom.loss
def looks_at_values(y_true, y_pred):
    assert int(ops.max(y_true)) < y_pred.shape[-1]
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)


def test_an_error_of_the_functions_own_is_the_authors_to_see():
    with pytest.raises(NameError, match="undefined_name"):
        misspelt()(np.arange(3), np.full((3, 3), 1 / 3, "float32"))


def test_a_function_that_looks_at_values_works_for_as_many_samples_as_classes():
    for count in (2, 3):
        value = looks_at_values()(np.arange(count), np.full((count, 3), 1 / 3, "float32"))
        assert float(value) == pytest.approx(np.log(3), rel=1e-5)


@pytest.mark.parametrize(("true", "pred"), [((4, 1, 1), (4,)), ((3, 3), (3,)), ((3, 1, 1, 1), (3, 1))], ids=str)
def test_targets_with_more_axes_than_the_predictions_are_refused(true, pred):
    for call in (absolute(), AbsoluteLoss(), absolute):
        with pytest.raises(errors.ShapeError, match="more axes than the predictions"):
            call(np.zeros(true), np.zeros(pred))


@kustom.loss
def by_operator(y_true, y_pred):
    return ops.square(y_true - y_pred)


@kustom.metric
def measured_by_operator(y_true, y_pred):
    return ops.square(y_true - y_pred)


@kustom.part
class ByOperator(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.square(y_true - y_pred)


@kustom.part
class MeasuredByOperator(keras.metrics.Metric):
    def setup(self):
        self.total = self.add_variable((), "zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(ops.sum(ops.square(y_true - y_pred)))

    def result(self):
        return self.total


@pytest.mark.parametrize("make", [by_operator, measured_by_operator, ByOperator, MeasuredByOperator], ids=lambda m: m.__name__)
@pytest.mark.parametrize(("true", "pred"), [((8, 2), (8, 3)), ((8,), (8, 3)), ((8, 4, 2), (8, 4, 3))])
def test_shapes_that_the_function_cannot_combine_are_refused_with_both(make, true, pred):
    part = make()
    said = f"{part.name} was given y_true .*{re.escape(str(true))} and y_pred {re.escape(str(pred))}, and combines"
    with pytest.raises(errors.ShapeError, match=said):
        part(np.ones(true, "float32"), np.ones(pred, "float32"))


def test_a_plain_function_names_the_shapes_that_it_cannot_combine():
    with pytest.raises(errors.ShapeError, match=r"by_operator was given y_true \(8, 2\) and y_pred \(8, 3\)"):
        by_operator(np.ones((8, 2), "float32"), np.ones((8, 3), "float32"))


def test_a_missing_return_is_named():
    @kustom.loss
    def silent(y_true, y_pred):
        ops.square(y_true - y_pred)

    @kustom.part
    class Silent(keras.losses.Loss):
        def call(self, y_true, y_pred):
            ops.square(y_true - y_pred)

    x = np.ones((2, 1), "float32")
    for call in (lambda: silent()(x, x), lambda: silent(x, x), lambda: Silent()(x, x)):
        with pytest.raises(errors.ReturnError, match=r"silent returned None.*is a return missing\?"):
            call()
