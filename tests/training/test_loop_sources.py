"""A loop trains on whatever gives batches, on every backend; and it dies with its owner."""

from __future__ import annotations

import gc
import threading
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors

X = np.arange(40, dtype="float32").reshape(20, 2)
Y = np.arange(20, dtype="float32")[:, None]
TOTAL = float(X.sum() + Y.sum())


def summing():
    """A step that counts its batches and adds up all that it sees."""
    count, total = keras.Variable(0, dtype="int32", trainable=False), keras.Variable(0.0, trainable=False)

    def step(x, y):
        count.assign_add(1)
        total.assign_add(sum(ops.sum(leaf) for leaf in keras.tree.flatten((x, y))))

    return count, total, step


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return X[5 * i : 5 * i + 5], Y[5 * i : 5 * i + 5]


def memory_map(tmp_path):
    written = np.memmap(tmp_path / "x", "float32", "w+", shape=X.shape)
    written[:] = X
    written.flush()
    return np.memmap(tmp_path / "x", "float32", "r", shape=X.shape)


def frames(name):
    library = pytest.importorskip(name)
    return library.DataFrame({"a": X[:, 0], "b": X[:, 1]}), library.DataFrame({"y": Y[:, 0]})


def tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(5)


def unknown_length():
    return tf_data().unbatch().filter(lambda x, y: True).batch(5)


def loader():
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=5)


def batches():
    return [(X[i : i + 5], Y[i : i + 5]) for i in range(0, 20, 5)]


SOURCES = {
    "arrays": lambda tmp: ((X, Y), {"batch_size": 5}),
    "tensors": lambda tmp: ((ops.convert_to_tensor(X), ops.convert_to_tensor(Y)), {"batch_size": 5}),
    "memory map": lambda tmp: ((memory_map(tmp), Y), {"batch_size": 5}),
    "pandas": lambda tmp: (frames("pandas"), {"batch_size": 5}),
    "polars": lambda tmp: (frames("polars"), {"batch_size": 5}),
    "dict": lambda tmp: (({"a": X[:, :1], "b": [X[:, 1:]]}, Y), {"batch_size": 5}),
    "tf.data": lambda tmp: ((tf_data(),), {}),
    "tf.data of unknown length": lambda tmp: ((unknown_length(),), {}),
    "DataLoader": lambda tmp: ((loader(),), {}),
    "PyDataset": lambda tmp: ((Batches(),), {}),
    "generator": lambda tmp: ((iter(batches() * 2),), {"steps_per_epoch": 4}),
    "list of batches": lambda tmp: ((batches(),), {}),
}


@pytest.mark.parametrize("execution", ["loop", "step"])
@pytest.mark.parametrize("name", SOURCES)
def test_each_batch_is_trained_on_once_each_epoch(name, execution, tmp_path):
    count, total, step = summing()
    data, options = SOURCES[name](tmp_path)
    kustom.Loop(step).fit(*data, epochs=2, execution=execution, verbose=0, **options)
    assert int(count) == 8
    assert float(ops.convert_to_numpy(total)) == 2 * TOTAL


def test_weights_come_third():
    seen = keras.Variable(0.0, trainable=False)

    def step(x, y, sample_weight):
        seen.assign_add(ops.sum(sample_weight))

    labels = np.array([0, 1] * 10)
    kustom.Loop(step).fit(X, labels, np.full(20, 2.0), class_weight={0: 1.0, 1: 3.0}, verbose=0)
    assert float(ops.convert_to_numpy(seen)) == 80.0


def test_what_is_written_into_an_array_between_two_runs_is_seen():
    _count, total, step = summing()
    loop, x = kustom.Loop(step), X.copy()
    loop.fit(x, Y, verbose=0)
    x += 1.0
    loop.fit(x, Y, verbose=0)
    assert float(ops.convert_to_numpy(total)) == 2 * TOTAL + x.size


def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    optimizer, mean = keras.optimizers.Adam(), keras.metrics.Mean(name="loss")

    def step(x, y):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(y - model(x)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        mean(loss)

    return model, kustom.Loop(step, metrics=[mean])


def test_a_loop_dies_with_its_owner():
    def once():
        model, loop = build()
        loop.fit(X, Y, batch_size=5, verbose=0)
        held = [weakref.ref(loop), weakref.ref(model), weakref.ref(model.layers[0].kernel)]
        programs = [entry.program for phase in loop._phases.values() for es in phase.compiled._entries.values() for entry in es]
        return held + [weakref.ref(program) for program in programs]

    held = once()
    keras.backend.clear_session()
    gc.collect()
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)


def test_many_models_in_a_row_leave_no_more_variables_than_one():
    def variables():
        gc.collect()
        return sum(issubclass(type(obj), keras.Variable) for obj in gc.get_objects())

    def once():
        _, loop = build()
        loop.fit(X, Y, batch_size=10, verbose=0)

    once()
    before = variables()
    for _ in range(3):
        once()
    assert variables() <= before + 2


def test_two_threads_train_two_models():
    losses: dict[int, list[float]] = {}

    def train(i):
        keras.utils.set_random_seed(0)
        _, loop = build()
        losses[i] = loop.fit(X / 40, Y / 20, epochs=3, batch_size=5, shuffle=False, verbose=0).history["loss"]

    threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(losses) == [0, 1]
    assert all(values[2] < values[0] for values in losses.values())


def test_a_second_thread_is_refused_while_a_loop_runs_and_a_callback_is_not():
    _, loop = build()
    said: list[Exception] = []
    seen: list[int] = []

    def elsewhere():
        try:
            loop.fit(X, Y, verbose=0)
        except errors.BusyError as error:
            said.append(error)

    def begun(epoch, logs):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        seen.append(len(loop.fit(X, Y, batch_size=10, verbose=0).epoch))

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=begun)
    history = loop.fit(X, Y, batch_size=10, epochs=2, callbacks=[callback], verbose=0)
    assert history.epoch == [0, 1]
    assert seen == [1, 1]
    assert ["another thread" in str(error) for error in said] == [True, True]
    with pytest.raises(errors.BusyError):
        _busy(loop)
    assert len(loop.fit(X, Y, verbose=0).epoch) == 1


def _busy(loop):
    """Call a loop from here while it runs in another thread."""
    running, done = threading.Event(), threading.Event()

    def hold(epoch, logs):
        running.set()
        done.wait(60)

    thread = threading.Thread(
        target=loop.fit, args=(X, Y), kwargs={"verbose": 0, "callbacks": [keras.callbacks.LambdaCallback(on_epoch_end=hold)]}
    )
    thread.start()
    try:
        assert running.wait(60)
        loop.fit(X, Y, verbose=0)
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only torch has operations in place")
def test_a_step_that_writes_into_its_batch_leaves_the_data_alone():
    x = np.ones((64, 8), "float32")

    def step(batch):
        batch.mul_(2.0)
        return {"loss": ops.mean(batch)}

    for execution in ("auto", "step", "eager"):
        history = kustom.Loop(step).fit(x, batch_size=16, epochs=2, verbose=0, execution=execution)
        assert history.history["loss"] == [2.0, 2.0]
    assert np.all(x == 1)


def test_data_that_cannot_be_written_to_trains():
    x = np.ones((8, 2), "float32")
    x.flags.writeable = False
    history = kustom.Loop(lambda batch: {"loss": ops.mean(batch)}).fit(x, batch_size=4, verbose=0)
    assert history.history["loss"] == [1.0]
