"""A loop around a step: what it trains on, what it reports, and what it leaves."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors

WAYS = ["auto", "loop", "step", "eager"]
rng = np.random.default_rng(0)
X = rng.normal(size=(70, 3)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5]]) + 0.1).astype("float32")


def regression(optimizer=None, seed=0):
    """A small model, its optimizer and a step that trains it."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    loss_fn = keras.losses.MeanSquaredError()

    def step(x, y):
        with kustom.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return {"loss": loss}

    return model, optimizer, step


def seen():
    """A step that counts the batches and adds up what it sees."""
    count, total = keras.Variable(0, dtype="int32", trainable=False), keras.Variable(0.0, trainable=False)

    def step(x):
        count.assign_add(1)
        total.assign_add(ops.sum(x))

    return count, total, step


def number(x):
    return float(ops.convert_to_numpy(x))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_alike(way):
    model, optimizer, step = regression()
    history = kustom.Loop(step).fit(X, Y, epochs=3, batch_size=16, shuffle=False, execution=way, verbose=0)
    other, other_optimizer, plain = regression()
    losses = []
    for _ in range(3):
        sums = 0.0
        for start in range(0, 70, 16):
            batch = X[start : start + 16], Y[start : start + 16]
            sums += number(plain(*map(ops.convert_to_tensor, batch))["loss"]) * len(batch[0])
        losses.append(sums / 70)
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-5)
    for mine, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(mine), ops.convert_to_numpy(theirs), rtol=1e-4, atol=1e-6)
    assert int(optimizer.iterations) == int(other_optimizer.iterations) == 15
    assert history.epoch == [0, 1, 2]
    assert history.execution["way"] == {"auto": history.execution["way"]}.get(way, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("samples", "batch_size"), [(64, 16), (70, 16), (5, 16), (1, 1), (33, 32)])
def test_every_batch_is_trained_on_once(way, samples, batch_size):
    count, total, step = seen()
    data = np.arange(1, samples + 1, dtype="float32")[:, None]
    kustom.Loop(step).fit(data, batch_size=batch_size, epochs=2, execution=way, verbose=0)
    assert int(count) == 2 * -(-samples // batch_size)
    assert number(total) == samples * (samples + 1)


def test_what_the_step_returns_is_averaged_by_samples():
    x = np.array([[1.0]] * 4 + [[2.0]] * 4 + [[9.0]] * 2, "float32")
    history = kustom.Loop(lambda x: {"mine": ops.mean(x)}, eval_step=lambda x: {"mine": ops.mean(x)}).fit(
        x, batch_size=4, shuffle=False, validation_data=(x,), verbose=0
    )
    assert history.history == {"mine": [pytest.approx(3.0)], "val_mine": [pytest.approx(3.0)]}


@pytest.mark.parametrize("way", ["loop", "eager", "falls back"])
def test_the_mean_does_not_depend_on_how_many_batches_a_call_has(way):
    from kustom.backends.lifting.eager import Eager

    x = np.random.default_rng(1).uniform(0, 1e4, (4096, 1)).astype("float32")

    def step(x):
        return {"loss": x[0, 0], "other": x[0, 0] * 0 + np.float32(0.1)}

    compiled = kustom.Loop(step)._phase("train", way, None).compiled
    call = compiled.arguments((x[:1],), {})
    entry = compiled.entry(call)
    program = entry.program
    if way == "falls back":
        program = Eager(lambda tensors: [tensors[0][0, 0], tensors[0][0, 0] * 0 + np.float32(0.1)])
        x = x[:512]
    data, number = [ops.convert_to_tensor(x[:, None])], len(x)
    expected = [x.astype("float64").sum(), number * float(np.float32(0.1))]
    for length in (number, 128):
        calls = [program.loop(data, None, start, length) for start in range(0, number, length)]
        for column, sum_ in zip(zip(*calls, strict=True), expected, strict=True):
            np.testing.assert_allclose(sum(map(float, column)), sum_, rtol=1e-12)


def test_a_sum_of_what_is_not_finite_is_as_it_was():
    x = np.array([[1.0], [np.inf], [2.0]], "float32")
    history = kustom.Loop(lambda x: {"loss": x[0, 0]}).fit(x, batch_size=1, epochs=2, on_nonfinite="ignore", verbose=0)
    assert history.history["loss"] == [np.inf, np.inf]


@pytest.mark.parametrize("execution", ["loop", "step", "eager"])
def test_a_value_of_some_batches_is_averaged_over_their_samples(execution):
    def step(x):
        whole = {"all": ops.mean(x)}
        return whole if x.shape[0] == 8 else whole | {"rest": ops.mean(x)}

    x = np.arange(20, dtype="float32")
    history = kustom.Loop(step).fit(x, batch_size=8, epochs=2, shuffle=False, execution=execution, verbose=0)
    assert history.history == {"all": [9.5, 9.5], "rest": [17.5, 17.5]}


def test_a_bare_scalar_is_the_loss():
    assert kustom.Loop(lambda x: ops.mean(x)).fit(X, verbose=0).history["loss"] == [pytest.approx(X.mean(), abs=1e-5)]


def test_a_metric_that_the_step_returns_is_reported_by_its_result():
    mean = keras.metrics.Mean(name="inner")

    def step(x):
        mean.update_state(x)
        return {"outer": mean}

    history = kustom.Loop(step).fit(X, batch_size=16, epochs=2, verbose=0)
    assert history.history == {"outer": [pytest.approx(X.mean(), abs=1e-5)] * 2}


def test_metrics_are_reset_each_epoch_and_reported_under_the_names_given():
    mean, mae = keras.metrics.Mean(), keras.metrics.MeanAbsoluteError()

    def step(x, y):
        mean(x)
        mae(y, y + 1.0)

    mean.update_state(1000.0)
    history = kustom.Loop(step, metrics={"average": mean, "mae": mae}).fit(X, Y, epochs=2, batch_size=16, verbose=0)
    assert history.history["average"] == [pytest.approx(X.mean(), abs=1e-5)] * 2
    assert history.history["mae"] == [pytest.approx(1.0, abs=1e-5)] * 2


@pytest.mark.parametrize("way", WAYS)
def test_a_metric_that_nobody_listed_is_found(way):
    listed, forgotten = keras.metrics.Mean(name="listed"), keras.metrics.Mean(name="forgotten")

    def step(x):
        listed(x)
        forgotten(x + 1.0)

    forgotten.update_state(1000.0)
    with pytest.warns(errors.MetricWarning, match="'forgotten'"):
        history = kustom.Loop(step, metrics=[listed]).fit(X, epochs=2, batch_size=16, execution=way, verbose=0)
    assert history.history["forgotten"] == [pytest.approx(X.mean() + 1, abs=1e-5)] * 2


def test_metrics_that_nobody_listed_are_found_without_a_word_where_none_were_listed():
    mean = keras.metrics.Mean(name="mean")
    history = kustom.Loop(lambda x: mean.update_state(x) and None).fit(X, verbose=0)
    assert history.history["mean"] == [pytest.approx(X.mean(), abs=1e-5)]


def test_a_metric_that_the_step_does_not_touch_is_left_alone():
    mean, other = keras.metrics.Mean(name="mean"), keras.metrics.Mean(name="other")
    other.update_state(5.0)
    holder = {"other": other}

    def step(x):
        mean(x)
        assert holder

    history = kustom.Loop(step).fit(X, verbose=0)
    assert list(history.history) == ["mean"]
    assert number(other.result()) == 5.0


@pytest.mark.parametrize("way", ["loop", "step"])
def test_what_is_assigned_between_epochs_is_used(way):
    scale = keras.Variable(1.0, trainable=False)
    values = []

    class Double(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            values.append(logs["loss"])
            scale.assign(scale * 2)

    kustom.Loop(lambda x: {"loss": scale * 1.0}).fit(X, epochs=3, callbacks=[Double()], execution=way, verbose=0)
    assert values == [1.0, 2.0, 4.0]


def test_trainable_that_is_flipped_takes_effect():
    model, _, step = regression(keras.optimizers.SGD(0.1))
    loop = kustom.Loop(step)
    loop.fit(X, Y, verbose=0)
    first, second = model.layers
    first.trainable = False
    before = [ops.convert_to_numpy(layer.kernel).copy() for layer in (first, second)]
    loop.fit(X, Y, verbose=0)
    after = [ops.convert_to_numpy(layer.kernel) for layer in (first, second)]
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 0
    first.trainable = True
    loop.fit(X, Y, verbose=0)
    assert np.abs(ops.convert_to_numpy(first.kernel) - before[0]).max() > 0


def test_python_state_that_changes_is_noticed():
    class Scaled(keras.layers.Layer):
        factor = 1.0

        def __init__(self):
            super().__init__()
            self.factor = 1.0

        def call(self, x):
            return x * self.factor

    layer = Scaled()
    loop = kustom.Loop(lambda x: {"loss": ops.mean(layer(x))})
    ones = np.ones((8, 2), "float32")
    assert loop.fit(ones, verbose=0).history["loss"] == [1.0]
    layer.factor = 3.0
    assert loop.fit(ones, verbose=0).history["loss"] == [3.0]


@pytest.mark.parametrize("way", ["loop", "step", "eager"])
def test_an_exception_of_the_step_comes_through_and_changes_nothing(way):
    count = keras.Variable(0.0, trainable=False)
    model, optimizer, plain = regression()

    def step(x, y):
        count.assign_add(1.0)
        plain(x, y)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        kustom.Loop(step).fit(X, Y, execution=way, verbose=0)
    assert number(count) == 0.0
    assert int(optimizer.iterations) == 0
    kustom.Loop(plain).fit(X, Y, execution=way, verbose=0)
    assert int(optimizer.iterations) == 3
    assert np.isfinite(ops.convert_to_numpy(model.weights[0])).all()


def test_a_branch_on_a_value_runs_eagerly_and_says_where():
    count = keras.Variable(0.0, trainable=False)

    def step(x):
        if ops.sum(x) > 0:
            count.assign_add(1.0)

    line = step.__code__.co_firstlineno
    said = rf"says_where.<locals>.step \(.*test_loop\.py:{line}\) runs .* test_loop\.py:{line + 1} needs"
    with pytest.warns(errors.EagerWarning, match=said.replace(r" test_loop", r".*test_loop")):
        kustom.Loop(step).fit(np.ones((64, 1), "float32"), batch_size=32, epochs=2, verbose=0)
    assert number(count) == 4.0


@pytest.mark.parametrize("kind", ["function", "method", "object"])
def test_a_step_that_is_traced_often_is_named_as_the_user_calls_it(kind):
    class Trainer:
        def step(self, x):
            return ops.sum(x)

        def __call__(self, x):
            return ops.sum(x)

    def step(x):
        return ops.sum(x)

    given = {"function": step, "method": Trainer().step, "object": Trainer()}[kind]
    name = {"function": "step", "method": r"Trainer\.step", "object": "Trainer"}[kind]
    place = "" if kind == "object" else r" \(.*test_loop\.py:\d+\)"
    batches = [(np.ones((size, 1), "float32"),) for size in range(1, 13)]
    with pytest.warns(errors.RetraceWarning, match=rf"{name}{place} has been traced 11 times"):
        kustom.Loop(given).fit(batches, verbose=0)


def diverging():
    """A step whose loss is NaN for the row that is 0, and its state."""
    weight, mean = keras.Variable(1.0), keras.metrics.Mean(name="loss")

    def step(x):
        loss = ops.mean(x / x) * weight
        weight.assign(weight + loss)
        mean(loss)

    return weight, mean, step


@pytest.mark.parametrize("way", ["auto", "loop", "step", "eager"])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_state(way):
    weight, mean, step = diverging()
    data = np.ones((20, 1), "float32")
    data[13] = 0.0
    with pytest.raises(errors.NonFiniteError, match="step 6") as caught:
        kustom.Loop(step, metrics=[mean]).fit(data, batch_size=2, shuffle=False, execution=way, verbose=0)
    error = caught.value
    assert (error.step, error.epoch, list(error.rows)) == (6, 0, [12, 13])
    np.testing.assert_array_equal(error.batch[0], [[1.0], [0.0]])
    assert number(weight) == 2.0**6


def test_a_step_whose_loss_is_not_finite_can_be_left_out():
    weight, mean, step = diverging()
    data = np.ones((20, 1), "float32")
    data[13] = 0.0
    history = kustom.Loop(step, metrics=[mean]).fit(data, batch_size=2, shuffle=False, on_nonfinite="skip", verbose=0)
    assert history.skipped == [6]
    assert number(weight) == 2.0**9
    assert history.history["loss"] == [pytest.approx((2.0**9 - 1) / 9)]
    weight.assign(1.0)
    ignored = kustom.Loop(step, metrics=[mean]).fit(data, batch_size=2, shuffle=False, on_nonfinite="ignore", verbose=0)
    assert np.isnan(ignored.history["loss"][0])


def test_validation_in_the_middle_of_an_epoch_leaves_the_metrics_alone():
    mean = keras.metrics.Mean(name="mean")

    def step(x):
        mean(x)

    loop = kustom.Loop(step, metrics=[mean], eval_step=step)
    values = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            values.append(loop.evaluate(np.full((8, 1), 100.0, "float32"))["mean"])

    history = loop.fit(np.ones((8, 1), "float32"), batch_size=4, callbacks=[Look()], verbose=0)
    assert values == [100.0, 100.0]
    assert history.history["mean"] == [1.0]


def test_validation():
    model, _, step = regression()
    loss_fn = keras.losses.MeanSquaredError()
    mse = keras.metrics.MeanSquaredError(name="mse")

    def eval_step(x, y):
        y_pred = model(x)
        mse(y, y_pred)
        return {"loss": loss_fn(y, y_pred)}

    loop = kustom.Loop(step, eval_step=eval_step)
    history = loop.fit(X, Y, epochs=4, validation_split=0.2, validation_freq=2, shuffle=False, verbose=0)
    assert len(history.history["loss"]) == 4
    assert len(history.history["val_loss"]) == 2
    held = loop.evaluate(X[56:], Y[56:])
    assert held["loss"] == pytest.approx(history.history["val_loss"][-1], rel=1e-5)
    assert held["mse"] == pytest.approx(held["loss"], rel=1e-5)
    assert loop.evaluate(X, Y, return_dict=False) == pytest.approx(list(loop.evaluate(X, Y).values()))
    history = loop.fit(X, Y, epochs=3, validation_data=(X, Y), validation_freq=[3], verbose=0)
    assert len(history.history["val_mse"]) == 1
    history = loop.fit(X, Y, epochs=3, validation_data=[X, Y], validation_freq=np.int64(2), verbose=0)
    assert len(history.history["val_mse"]) == 1


@pytest.mark.parametrize("frequency", [0, 2.0, "2", None])
def test_how_often_to_validate_is_refused_before_anything_is_trained(frequency):
    _, optimizer, step = regression()
    with pytest.raises(errors.SettingError, match="validation_freq="):
        kustom.Loop(step, eval_step=step).fit(X, Y, validation_data=(X, Y), validation_freq=frequency, verbose=0)
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("given", ["several inputs", "several targets", "a split", "batches"])
def test_validation_data_may_hold_tuples(given):
    half = X[:, :1]

    def of_two(xs, y):
        return {"loss": ops.mean(ops.sum(xs[0], -1) + ops.sum(xs[1], -1) - y[:, 0])}

    def of_two_targets(x, ys):
        return {"loss": ops.mean(ops.sum(x, -1) - ys[0][:, 0] - ys[1][:, 0])}

    if given == "several targets":
        step, x, y, expected = of_two_targets, X, (Y, half), np.mean(X.sum(-1) - Y[:, 0] - half[:, 0])
    else:
        step, x, y, expected = of_two, (X, half), Y, np.mean(X.sum(-1) + half[:, 0] - Y[:, 0])
    options = {
        "several inputs": {"validation_data": ((X, half), Y)},
        "several targets": {"validation_data": (X, (Y, half))},
        "batches": {"validation_data": [((X, half), Y)]},
        "a split": {"validation_split": 0.5},
    }[given]
    if given == "a split":
        held = slice(len(X) // 2, None)
        expected = np.mean(X[held].sum(-1) + half[held, 0] - Y[held, 0])
    history = kustom.Loop(step, eval_step=step).fit(x, y, verbose=0, **options).history
    assert history["val_loss"] == pytest.approx([expected], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("data", [(), (X, Y, Y, Y)])
def test_a_tuple_of_another_length_is_no_validation_data(data):
    with pytest.raises(errors.SettingError, match=f"a tuple of {len(data)}; expected"):
        kustom.Loop(lambda x, y: None, eval_step=lambda x, y: None).fit(X, Y, validation_data=data, verbose=0)


def test_a_second_fit_traces_nothing():
    _, optimizer, step = regression()
    loop = kustom.Loop(step)
    traces = loop.fit(X, Y, batch_size=16, epochs=2, verbose=0).execution["traces"]
    assert traces == 2  # whole batches, and the smaller last one
    again = loop.fit(X, Y, batch_size=16, epochs=2, initial_epoch=1, verbose=0)
    assert again.execution["traces"] == traces
    assert again.epoch == [1]
    assert int(optimizer.iterations) == 15


def test_the_order_is_made_from_the_seed():
    def firsts(**options):
        order = keras.Variable(np.zeros(1, "float32"), trainable=False)
        values = []
        step = kustom.Loop(lambda x: order.assign(x[0]) is None or None)

        class Note(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                values.append(number(order.value[0]))

        step.fit(np.arange(32, dtype="float32")[:, None], batch_size=4, epochs=2, callbacks=[Note()], verbose=0, **options)
        return values

    assert firsts(seed=3) == firsts(seed=3)
    assert firsts(seed=3)[:8] != firsts(seed=3)[8:]
    assert firsts(seed=3) != firsts(seed=4)
    assert firsts(shuffle=False) == [float(i) for i in range(0, 32, 4)] * 2


def test_a_generator_is_used_up_and_what_is_left_is_kept():
    count, total, step = seen()
    loop = kustom.Loop(step)
    stream = (np.full((2, 1), float(i), "float32") for i in range(10))
    loop.fit(stream, steps_per_epoch=3, epochs=2, verbose=0)
    assert int(count) == 6
    assert number(total) == 2 * sum(range(6))
    loop.fit(stream, steps_per_epoch=4, verbose=0)
    assert number(total) == 2 * sum(range(10))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"execution": "fast"}, errors.ExecutionError, "'auto', 'loop'"),
        ({"on_nonfinite": "stop"}, errors.SettingError, "'raise', 'skip', 'ignore'"),
        ({"verbose": "loud"}, errors.SettingError, "verbose='loud'"),
        ({"verbose": 3}, errors.SettingError, "'auto', 0"),
        ({"epochs": -1}, errors.SettingError, "epochs=-1"),
        ({"epochs": 1.5}, errors.SettingError, "epochs=1.5"),
        ({"seed": -1}, errors.SettingError, "seed=-1"),
        ({"seed": "first"}, errors.SettingError, "seed='first'"),
        ({"validation_split": 0.5}, errors.StepError, "eval_step"),
        ({"validation_split": 0.5, "validation_data": (X, Y)}, errors.SettingError, "give one"),
        ({"y": None}, errors.StepError, "the step takes"),
        ({"sample_weight": np.ones(70, "float32")}, errors.StepError, r"\(x, y, sample_weight\)"),
        ({"callbacks": [keras.callbacks.EarlyStopping]}, errors.CallbackError, "expected keras.callbacks.Callback"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(arguments, error, match):
    _, optimizer, step = regression()
    with pytest.raises(error, match=match):
        kustom.Loop(step).fit(X, **({"y": Y, "verbose": 0} | arguments))
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("returned", ["loss", [1.0], {"loss": "text"}])
def test_a_step_returns_scalars(returned):
    with pytest.raises(errors.StepError, match="returned"):
        kustom.Loop(lambda x: returned).fit(X, verbose=0)


def test_a_step_returns_no_loss_for_each_sample():
    with pytest.raises(errors.StepError, match=r"shape \(32, 3\)"):
        kustom.Loop(lambda x: {"loss": x}).fit(X[:64], verbose=0)


def test_what_a_loop_is_made_of():
    with pytest.raises(errors.StepError, match="Loop"):
        kustom.Loop(3)
    with pytest.raises(errors.SettingError, match=r"keras\.metrics\.Metric"):
        kustom.Loop(lambda x: None, metrics=["mae"])
    with pytest.raises(errors.SettingError, match="metrics names 'mean' 1; give text"):
        kustom.Loop(lambda x: None, metrics={1: keras.metrics.Mean("mean")})  # pyright: ignore[reportArgumentType]
    with pytest.raises(errors.SettingError, match="metrics is Mean; give a list"):
        kustom.Loop(lambda x: None, metrics=keras.metrics.Mean())
    with pytest.raises(errors.SettingError, match="'mean'"):
        kustom.Loop(lambda x: None, metrics=[keras.metrics.Mean(name="mean"), keras.metrics.Mean(name="mean")])
    with pytest.raises(errors.StepError, match="eval_step"):
        kustom.Loop(lambda x: None).evaluate(X)


def test_there_is_no_way_to_execute_of_another_backend():
    with pytest.raises(errors.ExecutionError, match="loop\\+neuron"):
        kustom.Loop(lambda x: None).fit(X, execution="loop+neuron", verbose=0)


def test_nothing_is_done_for_no_epochs():
    count, _, step = seen()
    history = kustom.Loop(step).fit(X, epochs=0, verbose=0)
    assert (int(count), history.epoch, history.history) == (0, [], {})


def test_the_status_line(capsys):
    _, _, step = regression()
    kustom.Loop(step).fit(X, Y, epochs=2, batch_size=35, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["Epoch 1/2", "Epoch 2/2"]
    assert "2/2" in lines[0]
    assert "loss" in lines[0]


def test_a_convolution_is_run_as_is_fastest_here():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01)

    def step(x, y):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(y - model(x, training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return {"loss": loss}

    history = kustom.Loop(step).fit(rng.normal(size=(16, 6, 6, 1)).astype("float32"), Y[:16], batch_size=4, epochs=2, verbose=0)
    assert history.execution["way"] == ("step" if keras.backend.backend() == "jax" else "loop")
    assert history.history["loss"][1] < history.history["loss"][0]
