"""Accumulation is the large batch, whatever the optimizer keeps and counts, and whatever the losses divide by."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from alike import array, weights
from keras import layers, ops

import kustom
from kustom.errors import SettingError

rng = np.random.default_rng(0)
X = rng.normal(size=(70, 4)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5], [0.0]]) + 0.1).astype("float32")
WEIGHTS = rng.uniform(0.2, 2, 70).astype("float32")
ADAM = keras.optimizers.AdamW


def dense():
    return keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh", kernel_regularizer="l2"), layers.Dense(1)])


def train(make, optimizer, data, batch_size, *, epochs=2, execution="auto", **options):
    keras.utils.set_random_seed(1)
    model = make()
    supervised = kustom.Supervised(model, optimizer=optimizer, **{"loss": "mse", **options})
    loop = kustom.Loop(supervised)
    named = dict(zip(("x", "y", "sample_weight"), data, strict=False))
    history = loop.fit(**named, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, execution=execution)
    return model, supervised, history.history


def equal(make, optimizer, data=(X, Y), *, large=24, steps=3, rtol=2e-4, atol=2e-5, reported=True, **options):
    """Batches of a third are as the whole, to rounding: the weights, the count of updates, and the loss that is reported."""
    model, one, history = train(make, optimizer(gradient_accumulation_steps=None), data, large, **options)
    other, many, accumulated = train(make, optimizer(gradient_accumulation_steps=steps), data, large // steps, **options)
    for mine, theirs in zip(weights(other), weights(model), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=atol)
    assert int(many.optimizer.iterations) == int(one.optimizer.iterations)
    if reported:
        np.testing.assert_allclose(accumulated["loss"], history["loss"], rtol=1e-3)
    return many


def schedule():
    return keras.optimizers.schedules.ExponentialDecay(0.05, 2, 0.5)


KEPT = {
    "schedule": {"learning_rate": schedule},
    "average": {"use_ema": True, "ema_momentum": 0.5},
    "average that overwrites": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.02},
}
ALL = {"learning_rate": schedule, "weight_decay": 0.1, "use_ema": True, "ema_overwrite_frequency": 2, "global_clipnorm": 0.5}


def of(cls, options):
    def make(**more):
        given = {name: value() if callable(value) else value for name, value in {"learning_rate": 0.05, **options}.items()}
        return cls(**given, **more)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kept", KEPT)
def test_each_by_itself_is_as_with_the_large_batch(kept):
    equal(dense, of(ADAM, {"weight_decay": 0.1, **KEPT[kept]}))


@pytest.mark.parametrize("execution", ["loop", "eager"])
def test_all_that_an_optimizer_keeps_is_as_with_the_large_batch(execution):
    # 70 samples: three updates an epoch, the last of 22, in batches of 8, 8 and 6.
    many = equal(dense, of(ADAM, ALL), execution=execution)
    assert int(many.optimizer.iterations) == 6


@pytest.mark.slow
@pytest.mark.parametrize("cls", [keras.optimizers.SGD, keras.optimizers.Nadam, keras.optimizers.Lion, keras.optimizers.RMSprop])
def test_of_every_kind(cls):
    equal(dense, of(cls, {"learning_rate": 0.01}))


def test_the_rest_of_an_epoch_is_applied_with_its_true_size():
    # 16 = 12 + 4: an update of three batches and one of a single batch, in each epoch.
    many = equal(dense, of(ADAM, {}), (X[:16], Y[:16]), large=12, epochs=1)
    assert int(many.optimizer.iterations) == 2


def test_batches_of_unequal_sizes_and_sample_weights_are_one_mean():
    sizes = [3, 9, 1, 7, 7, 7]
    ends = np.cumsum(sizes)
    batches = [(X[end - size : end], Y[end - size : end], WEIGHTS[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    large = [tuple(np.concatenate(parts) for parts in zip(*batches[at : at + 3], strict=True)) for at in (0, 3)]
    found = []
    for source, steps in ((large, None), (batches, 3)):
        keras.utils.set_random_seed(1)
        model = dense()
        optimizer = keras.optimizers.Adam(0.05, gradient_accumulation_steps=steps)
        supervised = kustom.Supervised(model, optimizer=optimizer, loss="mse", weighted_metrics=["mae"])
        history = kustom.Loop(supervised).fit(source, epochs=2, verbose=0)
        found.append((weights(model), history.history))
    for mine, theirs in zip(found[1][0], found[0][0], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-5)


STEPS = rng.integers(0, 6, size=(48, 5))
BY_STEP = rng.normal(size=(48, 5, 1)).astype("float32")


def masked():
    return keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(6, 3, mask_zero=True), layers.Dense(1)])


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_whatever_a_loss_divides_by(reduction):
    # Of a mask each batch lets another number pass; a sum is not divided at all; weights have another sum in each.
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    options = {"learning_rate": 0.01 if reduction == "sum" else 0.3}
    data = (STEPS, BY_STEP, rng.uniform(0.1, 3, (48, 5)).astype("float32"))
    equal(masked, of(keras.optimizers.SGD, options), data, loss=loss, reported=False)


def test_losses_that_divide_by_different_things_beside_one_another():
    def make():
        x = keras.Input((5,), dtype="int32")
        hidden = layers.Embedding(6, 3, mask_zero=True)(x)
        whole = layers.Dense(1, name="whole", kernel_regularizer="l2")(layers.GlobalAveragePooling1D()(hidden))
        return keras.Model(x, [layers.Dense(1, name="by_step")(hidden), whole])

    losses = [keras.losses.MeanSquaredError(), keras.losses.MeanSquaredError(reduction="sum")]
    data = (STEPS, [BY_STEP, BY_STEP[:, 0]])
    equal(make, of(keras.optimizers.SGD, {}), data, loss=losses, loss_weights=[1.0, 0.02], reported=False)


def test_with_loss_scaling_and_an_overflow():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        many = equal(dense, of(keras.optimizers.SGD, {}), rtol=2e-2, atol=2e-3)
        assert isinstance(many.optimizer, keras.optimizers.LossScaleOptimizer)
        data = X[:48].copy()
        data[3] = np.inf
        optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=3)
        supervised = kustom.Supervised(dense(), optimizer=optimizer, loss="mse")
        kustom.Loop(supervised).fit(data, Y[:48], batch_size=8, shuffle=False, verbose=0, on_nonfinite="ignore")
    finally:
        keras.config.set_dtype_policy(before)
    # The update that the batch was part of is left out as a whole, and the next is whole again.
    assert int(supervised.optimizer.iterations) == 1
    assert array(supervised.optimizer.dynamic_scale) == 2.0**14
    assert all(np.isfinite(w).all() for w in weights(supervised.model))


def test_a_layer_that_is_frozen_between_epochs_keeps_its_weights():
    model = dense()
    optimizer = keras.optimizers.AdamW(
        0.05, weight_decay=0.1, use_ema=True, ema_overwrite_frequency=1, gradient_accumulation_steps=2
    )
    seen = []

    def freeze(epoch, logs=None):
        model.layers[0].trainable = epoch == 0
        seen.append([array(v) for v in (model.layers[0].kernel, model.layers[1].kernel)])

    hook = keras.callbacks.LambdaCallback(on_epoch_begin=freeze)
    loop = kustom.Loop(kustom.Supervised(model, optimizer=optimizer, loss="mse"))
    loop.fit(X, Y, batch_size=16, epochs=3, verbose=0, callbacks=[hook])
    first, second, third = seen
    assert (first[0] != second[0]).any()
    np.testing.assert_array_equal(second[0], third[0])
    np.testing.assert_array_equal(second[0], array(model.layers[0].kernel))
    assert (second[1] != third[1]).any()


def test_the_rest_can_be_applied_by_hand():
    model = dense()
    supervised = kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), loss="mse")
    step, rest = kustom.function(supervised), kustom.function(supervised.epoch_end)
    before = weights(model)
    step(X[:8], Y[:8])
    assert all((mine == other).all() for mine, other in zip(weights(model), before, strict=True))
    for _ in range(2):
        rest()
        assert int(supervised.optimizer.iterations) == 1
    assert any((mine != other).any() for mine, other in zip(weights(model), before, strict=True))


def test_the_optimizer_is_told_no_more():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    first = kustom.Supervised(dense(), optimizer=optimizer, loss="mse")
    second = kustom.Supervised(first.model, optimizer=optimizer, loss="mse")
    assert optimizer.gradient_accumulation_steps is None
    assert first.epoch_end is not None
    assert second.epoch_end is not None
    assert kustom.Supervised(dense(), optimizer="sgd", loss="mse").epoch_end is None


def test_what_cannot_be_taken_over_is_refused():
    used, variable = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), keras.Variable([1.0])
    used.apply([ops.ones((1,))], [variable])
    with pytest.raises(SettingError, match="has accumulated by itself, and counts batches"):
        kustom.Supervised(dense(), optimizer=used, loss="mse")
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        return
    one, other = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), keras.optimizers.SGD(0.1)
    both = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(one, {".*bias": other}))
    with pytest.raises(SettingError, match="accumulate over different numbers of batches"):
        kustom.Supervised(dense(), optimizer=both, loss="mse")


def test_a_run_that_is_cut_short_leaves_nothing_to_the_next():
    def run(supervised, **options):
        kustom.Loop(supervised).fit(X[:16], Y[:16], batch_size=4, shuffle=False, verbose=0, **options)

    def stop(batch, logs):
        raise KeyboardInterrupt

    keras.utils.set_random_seed(1)
    supervised = kustom.Supervised(dense(), optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), loss="mse")
    start = weights(supervised.model)
    with pytest.raises(KeyboardInterrupt):
        run(supervised, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop)])
    # A batch of four was added, and none applied.
    for mine, other in zip(weights(supervised.model), start, strict=True):
        np.testing.assert_array_equal(mine, other)
    run(supervised)
    keras.utils.set_random_seed(1)
    fresh = kustom.Supervised(dense(), optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), loss="mse")
    run(fresh)
    for mine, other in zip(weights(supervised.model), weights(fresh.model), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-7)
    assert int(supervised.optimizer.iterations) == int(fresh.optimizer.iterations) == 1
