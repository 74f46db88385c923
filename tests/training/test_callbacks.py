"""Keras's callbacks in a loop."""

from __future__ import annotations

import os
import signal

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors

rng = np.random.default_rng(0)
X = rng.normal(size=(44, 3)).astype("float32")
Y = X[:, :1]


def training(optimizer=None):
    """A compiled-by-nobody model, its optimizer, and a loop that trains and evaluates it."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = optimizer or keras.optimizers.SGD(0.1)

    def step(x, y):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(y - model(x, training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return {"loss": loss}

    def eval_step(x, y):
        return {"loss": ops.mean(ops.square(y - model(x)))}

    return model, optimizer, kustom.Loop(step, eval_step=eval_step)


class Record(keras.callbacks.Callback):
    """Notes every hook and what it was told."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("train begin")

    def on_train_end(self, logs=None):
        self.calls.append(("train end", sorted(logs)))

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch begin", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch end", epoch, sorted(logs)))


class Batches(keras.callbacks.Callback):
    """Notes the batches."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended, self.losses = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(batch)
        self.losses.append(logs["loss"])


def test_the_hooks_come_in_order():
    _, _, loop = training()
    record = Record()
    loop.fit(X, Y, epochs=2, validation_data=(X, Y), callbacks=[record], verbose=0)
    told = ["loss", "val_loss"]
    assert record.calls == [
        "train begin",
        *[call for epoch in (0, 1) for call in (("epoch begin", epoch), ("epoch end", epoch, told))],
        ("train end", told),
    ]


def test_batches_have_their_true_numbers():
    _, optimizer, loop = training()
    batches = Batches()
    history = loop.fit(X, Y, batch_size=4, epochs=2, callbacks=batches, verbose=0)
    assert batches.begun == batches.ended == [*range(11), *range(11)]
    assert int(optimizer.iterations) == 22
    assert batches.losses[10] == pytest.approx(history.history["loss"][0])


def test_early_stopping_stops_and_restores():
    model, _, loop = training(keras.optimizers.SGD(1.5))
    stopping = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    history = loop.fit(X, Y, batch_size=44, epochs=50, validation_data=(X, Y), callbacks=[stopping], verbose=0)
    assert len(history.epoch) < 50
    assert loop.evaluate(X, Y)["loss"] == pytest.approx(min(history.history["val_loss"]))
    assert model.stop_training


def test_early_stopping_that_restores_nothing_needs_no_model():
    value = keras.Variable(0.0, trainable=False)

    def step(x):
        value.assign_add(1.0)
        return {"loss": value * 1.0}

    stopping = keras.callbacks.EarlyStopping(monitor="loss", patience=2)
    history = kustom.Loop(step).fit(X, epochs=50, batch_size=44, callbacks=[stopping], verbose=0)
    assert history.epoch == [0, 1, 2]


def test_learning_rates_are_scheduled_and_reduced():
    _, optimizer, loop = training()
    rates = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: rates.append(float(optimizer.learning_rate)))
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / (epoch + 1))
    loop.fit(X, Y, epochs=3, callbacks=[schedule, look], verbose=0)
    np.testing.assert_allclose(rates, [0.1, 0.05, 0.1 / 3], rtol=1e-6)
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=10.0)
    loop.fit(X, Y, epochs=4, callbacks=[plateau], verbose=0)
    assert float(optimizer.learning_rate) < 0.1 / 3


def test_a_learning_rate_that_a_callback_sets_is_used_by_the_next_step():
    model, optimizer, loop = training()
    moved = []

    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                optimizer.learning_rate = 0.0
            self.before = model.get_weights()[0].copy()

        def on_epoch_end(self, epoch, logs=None):
            moved.append(bool(np.abs(model.get_weights()[0] - self.before).max() > 0))

    loop.fit(X, Y, epochs=3, callbacks=[Freeze()], verbose=0)
    assert moved == [True, False, False]


def test_a_log_and_checkpoints_are_written(tmp_path):
    model, _, loop = training()
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True)
    loop.fit(X, Y, epochs=2, callbacks=[log, checkpoint], verbose=0)
    assert (tmp_path / "log.csv").read_text().startswith("epoch,loss")
    kept = model.get_weights()[0].copy()
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    model.load_weights(tmp_path / "2.weights.h5")
    np.testing.assert_array_equal(model.get_weights()[0], kept)


def test_a_checkpoint_by_batches(tmp_path):
    _, _, loop = training()
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "{batch}.weights.h5"), save_weights_only=True, save_freq=4)
    loop.fit(X, Y, batch_size=4, callbacks=[checkpoint], verbose=0)
    assert len(list(tmp_path.iterdir())) == 2


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorflow")
    _, _, loop = training()
    loop.fit(X, Y, epochs=2, callbacks=[keras.callbacks.TensorBoard(str(tmp_path))], verbose=0)
    assert list(tmp_path.rglob("events*"))


def test_a_callback_that_needs_a_model_refuses_without_one(tmp_path):
    first, second = keras.Sequential([keras.layers.Dense(1)]), keras.Sequential([keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.1)

    def step(x):
        with kustom.GradientTape() as tape:
            loss = ops.mean(first(x) * second(x))
        variables = first.trainable_variables + second.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "m.weights.h5"), save_weights_only=True)
    with pytest.raises(errors.CallbackError, match=r"Loop\(step, model=model\)"):
        kustom.Loop(step).fit(X, callbacks=[checkpoint], verbose=0)

    class Own(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.get_weights()

    with pytest.raises(errors.CallbackError, match="get_weights"):
        kustom.Loop(step).fit(X, callbacks=[Own()], verbose=0)
    kustom.Loop(step, model=first).fit(X, callbacks=[checkpoint, Own()], verbose=0)
    assert (tmp_path / "m.weights.h5").exists()


def test_the_model_that_the_step_trains_is_the_callbacks():
    model, _, loop = training()
    record = Record()
    loop.fit(X, Y, callbacks=[record], verbose=0)
    assert record.model is model
    assert model.history is loop.history


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_batch_end"])
def test_a_callback_stops_the_run(hook):
    model, optimizer, loop = training()

    def stop(*args):
        model.stop_training = True

    history = loop.fit(X, Y, batch_size=4, epochs=5, callbacks=[keras.callbacks.LambdaCallback(**{hook: stop})], verbose=0)
    assert history.epoch == [0]
    assert int(optimizer.iterations) == (11 if hook == "on_epoch_end" else 1)


def test_an_exception_of_a_callback_comes_through_and_training_may_go_on():
    _, optimizer, loop = training()

    def fail(epoch, logs):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        loop.fit(X, Y, batch_size=4, epochs=3, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=fail)], verbose=0)
    assert int(optimizer.iterations) == 11
    assert loop.history.epoch == [0]
    loop.fit(X, Y, batch_size=4, verbose=0)
    assert int(optimizer.iterations) == 22


@pytest.mark.parametrize("execution", ["loop", "step", "eager"])
def test_ctrl_c_leaves_whole_steps_and_training_may_go_on(execution):
    model, optimizer, loop = training()
    count = keras.Variable(0, dtype="int32", trainable=False)
    plain = loop._step

    def step(x, y):
        count.assign_add(1)
        return plain(x, y)

    loop = kustom.Loop(step, model=model)

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.fit(X, Y, batch_size=4, epochs=5, callbacks=[Interrupt()], execution=execution, verbose=0)
    done = int(count)
    assert done == int(optimizer.iterations) >= 22
    assert all(np.isfinite(w).all() for w in model.get_weights())
    loop.fit(X, Y, batch_size=4, execution=execution, verbose=0)
    assert int(count) == int(optimizer.iterations) == done + 11


def test_evaluations_hooks():
    _, _, loop = training()
    ended = []
    look = keras.callbacks.LambdaCallback()
    look.on_test_batch_end = lambda batch, logs=None: ended.append(batch)
    loop.evaluate(X, Y, batch_size=8, callbacks=[look])
    assert ended == list(range(6))


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_hooks_by_batch_are_told_the_metrics_after_that_batch(on_nonfinite):
    """What is asked for once, to see whether it is finite, is what they are told, unless the step was undone."""
    mean = keras.metrics.Mean(name="loss")
    told = []

    class Telling(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            told.append(logs["loss"])
            if batch == 0:
                mean.reset_state()

    x = np.array([1, 3, np.nan, 5] if on_nonfinite == "skip" else [1, 3, 5, 7], "float32")
    loop = kustom.Loop(lambda x: mean.update_state(x) and None, metrics=[mean])
    history = loop.fit(x, batch_size=1, shuffle=False, callbacks=[Telling()], on_nonfinite=on_nonfinite, verbose=0)
    assert told == ([1, 3, 3, 4] if on_nonfinite == "skip" else [1, 3, 4, 5])
    assert history.history["loss"] == [told[-1]]


@pytest.mark.parametrize("way", ["not compiled", "compiled with another"])
def test_the_steps_optimizer_is_lent_to_the_model_and_taken_back(way):
    model, optimizer, loop = training()
    if way == "compiled with another":
        model.compile(optimizer=keras.optimizers.SGD(0.7))
    before, traces, seen = getattr(model, "optimizer", None), [], []
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs=None: seen.append(model.optimizer))
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.01)
    for _ in range(3):
        optimizer.learning_rate = 0.1
        history = loop.fit(X, Y, callbacks=[schedule, look], verbose=0)
        traces.append(history.execution["traces"])
        assert float(optimizer.learning_rate) == pytest.approx(0.01)
        assert getattr(model, "optimizer", None) is before
    assert seen == [optimizer] * 3
    assert before is None or float(before.learning_rate) == pytest.approx(0.7)
    assert traces == traces[:1] * 3


def test_the_optimizer_of_an_earlier_loop_is_not_the_next_ones():
    model, first, loop = training()
    loop.fit(X, Y, verbose=0)
    second = keras.optimizers.SGD(0.01)

    def step(x, y):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(y - model(x, training=True)))
        second.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return {"loss": loss}

    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5)
    kustom.Loop(step).fit(X, Y, callbacks=[schedule], verbose=0)
    assert (float(first.learning_rate), float(second.learning_rate)) == pytest.approx((0.1, 0.5))


def test_it_is_taken_back_after_an_exception():
    model, _, loop = training()

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyError(epoch)

    with pytest.raises(KeyError):
        loop.fit(X, Y, callbacks=[Stop()], verbose=0)
    assert getattr(model, "optimizer", None) is None


@pytest.mark.parametrize("compiled", [False, True])
def test_a_schedule_of_the_rate_where_several_optimizers_are_applied_is_refused(compiled):
    model, _, _ = training()
    parts = [(keras.optimizers.SGD(0.1), variable) for variable in model.trainable_variables]
    if compiled:
        model.compile(optimizer=keras.optimizers.SGD(0.7))

    def step(x, y):
        with kustom.GradientTape(persistent=True) as tape:
            loss = ops.mean(ops.square(y - model(x, training=True)))
        for optimizer, variable in parts:
            optimizer.apply([tape.gradient(loss, variable)], [variable])
        return {"loss": loss}

    loop = kustom.Loop(step)
    loop.fit(X, Y, verbose=0)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5)
    with pytest.raises(errors.CallbackError, match="LearningRateScheduler sets what the optimizer of its model has"):
        loop.fit(X, Y, callbacks=[schedule], verbose=0)
    assert [float(optimizer.learning_rate) for optimizer, _ in parts] == pytest.approx([0.1, 0.1])


MONITORS = {
    "EarlyStopping": lambda monitor: keras.callbacks.EarlyStopping(monitor, patience=5),
    "ReduceLROnPlateau": lambda monitor: keras.callbacks.ReduceLROnPlateau(monitor),
    "ModelCheckpoint": lambda monitor: keras.callbacks.ModelCheckpoint("best.keras", monitor=monitor, save_best_only=True),
}


@pytest.mark.parametrize("kind", MONITORS)
@pytest.mark.parametrize("monitor", ["mae", "val_mae", "val_binary_accuracy"])
def test_which_way_a_monitored_metric_gets_better(kind, monitor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    metrics = [keras.metrics.MeanAbsoluteError(name="mae"), keras.metrics.BinaryAccuracy()]
    step = kustom.Supervised(model, optimizer="sgd", loss="mse", metrics=metrics)
    callback = MONITORS[kind](monitor)
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    kustom.Loop(step).fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=[callback])
    assert callback.monitor_op is (ops.greater if "accuracy" in monitor else ops.less)
    assert callback.mode == "auto"


def test_a_listed_metric_is_monitored_under_its_own_name():
    accuracy = keras.metrics.Accuracy()

    def step(x):
        accuracy.update_state(x, x)

    callback = keras.callbacks.EarlyStopping("hits", patience=5)
    kustom.Loop(step, metrics={"hits": accuracy}).fit(np.ones((8, 1), "float32"), epochs=2, verbose=0, callbacks=callback)
    assert callback.monitor_op is ops.greater


def test_every_hook_is_given_what_keras_gives():
    """By position, and with a dict of its own, in a fit with a validation, an evaluate and a predict."""
    names = [
        f"on_{what}{when}"
        for what in ("train", "test", "predict", "epoch", "train_batch", "test_batch", "predict_batch")
        for when in ("_begin", "_end")
    ]

    def told(fit, model):
        seen = {}

        def hook(name):
            if "epoch" in name or "batch" in name:
                return lambda self, number, logs: seen.setdefault(name, type(logs))
            return lambda self, logs: seen.setdefault(name, type(logs))

        callback = type("Strict", (keras.callbacks.Callback,), {name: hook(name) for name in names})()
        data = {"batch_size": 22, "callbacks": [callback], "verbose": 0}
        fit(X, Y, validation_data=(X, Y), **data)
        model.evaluate(X, Y, **data)
        model.predict(X, **data)
        return seen

    def compiled(base):
        model = base(*_ends())
        model.compile("sgd", "mse")
        return model

    def _ends():
        inputs = keras.Input((3,))
        return inputs, keras.layers.Dense(1)(inputs)

    theirs, ours = compiled(keras.Model), compiled(kustom.Model)
    expected = told(theirs.fit, theirs)
    assert sorted(expected) == sorted(names)
    assert told(ours.fit, ours) == expected
    _, _, loop = training()
    assert told(loop.fit, ours) == expected
