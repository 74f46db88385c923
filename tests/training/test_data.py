"""Arrays as data: each row once a pass, in an order that is a function of seed and epoch, whatever holds the numbers."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
from drawing import Rows, batches, first
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import kustom
from kustom import errors
from kustom.backends import current
from kustom.training.data import gives_batches, open_source, split_validation

SIZES = st.integers(1, 60)
TAKES = st.lists(st.integers(1, 9), min_size=1, max_size=4)
SHUFFLES = st.sampled_from([True, False, "batch"])


def columns(samples):
    return np.arange(samples), np.arange(samples) + 0.5


def chunked(*data, **options):
    """The same data, read in chunks of a few rows."""
    return open_source(*data, resident_limit=0, chunk_bytes=200, **options)


OPEN = pytest.mark.parametrize("opened", [open_source, chunked])


@OPEN
@settings(deadline=None, max_examples=50)
@given(SIZES, SIZES, SHUFFLES, TAKES, st.integers(0, 3))
def test_each_row_comes_once_an_epoch(opened, samples, size, shuffle, most, epoch):
    source = opened(*columns(samples), batch_size=size, shuffle=shuffle, seed=1)
    got = batches(source, epoch, most=most)
    source.close()
    assert sorted(first(got)) == list(range(samples))
    assert len(got) == source.batches == -(-samples // size)
    assert source.samples == samples
    assert all(len(x) == size for x, _ in got[:-1])
    for x, y in got:
        np.testing.assert_array_equal(x + 0.5, y)


@OPEN
@settings(deadline=None, max_examples=50)
@given(SIZES, SIZES, SHUFFLES, st.integers(1, 9), TAKES)
def test_epochs_of_steps_are_cut_from_whole_passes(opened, samples, size, shuffle, steps, most):
    source = opened(*columns(samples), batch_size=size, shuffle=shuffle, seed=1, steps_per_epoch=steps)
    whole = opened(*columns(samples), batch_size=size, shuffle=shuffle, seed=1)
    got = [args for epoch in range(4) for args in batches(source, epoch, most=most)]
    assert len(got) == 4 * steps
    passes = [args for number in range(4 * steps) for args in batches(whole, number)][: len(got)]
    source.close()
    whole.close()
    assert first(got) == first(passes)


@OPEN
@settings(deadline=None, max_examples=50)
@given(SIZES, SIZES, st.sampled_from([True, False, "batch", "replacement"]), st.none() | st.integers(1, 9), st.data())
def test_an_epoch_begun_in_its_middle_is_the_rest_of_the_whole(opened, samples, size, shuffle, steps, data):
    options = {"batch_size": size, "shuffle": shuffle, "seed": 7, "steps_per_epoch": steps}
    source = opened(*columns(samples), **options)
    whole = [batches(source, epoch) for epoch in range(3)]
    epoch = data.draw(st.integers(0, 2))
    at = data.draw(st.integers(0, len(whole[epoch])))
    resumed = opened(*columns(samples), **options)
    assert first(batches(resumed, epoch, at)) == first(whole[epoch][at:])
    source.close()
    resumed.close()


@OPEN
def test_the_order_is_numpys_permutation_by_seed_and_epoch(opened):
    source = opened(np.arange(50), batch_size=8, seed=3)
    for epoch in range(3):
        assert first(batches(source, epoch)) == np.random.default_rng([3, epoch]).permutation(50).tolist()
    source.close()


def test_without_a_seed_the_global_one_makes_the_order_repeatable():
    def order(seed):
        keras.utils.set_random_seed(seed)
        source = open_source(np.arange(50), batch_size=8)
        return [first(batches(source, epoch)) for epoch in range(2)], source.seed

    one, seed = order(1)
    assert one[0] != one[1]
    assert order(1) == (one, seed)
    assert order(2)[0] != one
    assert first(batches(open_source(np.arange(50), batch_size=8, seed=seed))) == one[0]


def test_rows_that_are_not_shuffled_keep_their_place():
    assert first(batches(open_source(np.arange(10), batch_size=4, shuffle=False), 5)) == list(range(10))


def test_batch_shuffles_within_the_batches():
    got = batches(open_source(np.arange(64), batch_size=16, shuffle="batch", seed=1))
    assert [sorted(x.tolist()) for (x,) in got] == [list(range(i, i + 16)) for i in range(0, 64, 16)]
    assert first(got) != list(range(64))


@OPEN
def test_replacement_draws_each_row_from_all(opened):
    source = opened(*columns(100), batch_size=32, shuffle="replacement", seed=1)
    got = [x for epoch in range(50) for x, _ in batches(source, epoch)]
    assert source.batches == 3
    assert {len(x) for x in got} == {32}
    counts = np.bincount(np.concatenate(got), minlength=100)
    assert counts.min() > 20
    assert max(len(x) - len(set(x.tolist())) for x in got) > 0
    source.close()
    few = open_source(np.arange(5), batch_size=32, shuffle="replacement")
    assert [len(x) for (x,) in batches(few)] == [32]


def test_the_batch_size_is_32_or_makes_the_steps():
    assert [len(x) for (x,) in batches(open_source(np.arange(70)))] == [32, 32, 6]
    assert [len(x) for (x,) in batches(open_source(np.arange(70), steps_per_epoch=4))] == [18, 18, 18, 16]


def test_rows_are_one_array_while_an_epoch_lasts():
    source = open_source(np.arange(100), batch_size=10, seed=1)
    source.begin(0)
    blocks = [source.take(4) for _ in range(3)]
    assert all(block.rows is blocks[0].rows for block in blocks)
    assert [(block.offset, block.batches) for block in blocks] == [(0, 4), (4, 4), (8, 2)]
    source.begin(1)
    assert source.take(1).rows.shape == blocks[0].rows.shape


def test_chunks_have_one_length():
    source = chunked(np.arange(103, dtype="int32"), batch_size=10, seed=1)
    lengths = []
    source.begin(0)
    while block := source.take(2):
        lengths.append((block.size, block.arrays[0].shape))
    source.close()
    assert lengths == [(10, (5, 10))] * 6 + [(3, (1, 3))]


def test_nests_come_as_they_were_given():
    x = {"b": np.arange(4.0), "a": [np.arange(4), (np.arange(8).reshape(4, 2), None)]}
    ((got_x, got_y, got_weight),) = batches(open_source(x, (np.arange(4),), np.ones(4), shuffle=False))
    assert list(got_x) == ["b", "a"]
    assert isinstance(got_x["a"], list)
    assert isinstance(got_x["a"][1], tuple)
    assert got_x["a"][1][1] is None
    np.testing.assert_array_equal(got_x["a"][1][0], [[0, 1], [2, 3], [4, 5], [6, 7]])
    assert isinstance(got_y, tuple)
    np.testing.assert_array_equal(got_weight, np.ones(4))


@pytest.mark.parametrize(("data", "items"), [((np.ones(3),), 1), ((np.ones(3), np.ones(3)), 2), ((np.ones(3),) * 3, 3)])
def test_a_step_gets_as_many_arguments_as_there_are(data, items):
    (args,) = batches(open_source(*data))
    assert len(args) == items


@OPEN
@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        *[("float64", "float32"), ("float16", "float32"), ("float32", "float32"), (">f4", "float32"), ("longdouble", "float32")],
        *[("int64", "int64"), ("int8", "int8"), (">i4", "int32"), ("uint8", "uint8"), ("bool", "bool"), ("complex64", "complex64")],
    ],
)
def test_dtypes_are_keras_own(opened, given, arrives):
    source = opened(np.ones((5, 2), given), batch_size=5)
    ((x,),) = batches(source)
    source.close()
    assert x.dtype == arrives
    assert x.dtype.isnative


@OPEN
@pytest.mark.parametrize(("given", "kind"), [(2**40, "int64"), (-(2**31) - 1, "int64"), (2**32, "uint64")])
def test_integers_that_no_tensor_holds_are_refused(opened, given, kind):
    x = np.array([[1], [given]], kind)
    if current().integers(x.dtype) == x.dtype:
        source = opened(x, shuffle=False)
        assert batches(source)[0][0].tolist() == x.tolist()
        source.close()
        return
    with pytest.raises(errors.DataError, match=r"widest integers|no tensors"):
        batches(opened(x))
    with pytest.raises(errors.DataError, match=r"widest integers|no tensors"):
        batches(open_source(iter([(x,)])))


@OPEN
def test_wide_integers_of_small_numbers_are_as_they_were(opened):
    x = np.array([[2**31 - 1], [-(2**31)]])
    seen = keras.Variable(np.zeros(2, "float32"), trainable=False)

    def step(x):
        seen.assign(ops.cast(x[:, 0], "float32"))

    source = opened(x, shuffle=False)
    assert batches(source)[0][0].tolist() == x.tolist()
    source.close()
    kustom.Loop(step).fit(x, shuffle=False, verbose=0)
    assert ops.convert_to_numpy(seen).tolist() == [2.0**31, -(2.0**31)]


def test_floatx_is_what_is_set():
    keras.config.set_floatx("float64")
    try:
        ((x, y),) = batches(open_source(np.ones(3, "float32"), np.ones(3, "int32")))
    finally:
        keras.config.set_floatx("float32")
    assert (x.dtype, y.dtype) == ("float64", "int32")


VALUE = [[1.0, 2.0], [3.0, 4.0]]
# Each of them on each backend, and one that is not installed is passed over.
TENSORS = {
    "jax": lambda jax: jax.numpy.array(VALUE),
    "jax bfloat16": lambda jax: jax.numpy.array(VALUE, "bfloat16"),
    "tensorflow": lambda tf: tf.constant(VALUE),
    "tensorflow variable": lambda tf: tf.Variable(VALUE),
    "torch": lambda torch: torch.tensor(VALUE, requires_grad=True),
    "torch bfloat16": lambda torch: torch.tensor(VALUE, dtype=torch.bfloat16),
    "keras": lambda keras: keras.ops.convert_to_tensor(VALUE),
    "keras variable": lambda keras: keras.Variable(VALUE),
    "numpy float16": lambda numpy: numpy.array(VALUE, "float16"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_every_backend(kind):
    tensor = TENSORS[kind](pytest.importorskip(kind.split()[0]))
    ((x, y),) = batches(open_source(tensor, tensor, shuffle=False))
    assert x.dtype == y.dtype == "float32"
    np.testing.assert_array_equal(x, [[1, 2], [3, 4]])


def tables():
    import pandas as pd
    import polars as pl

    data = {"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True]}
    return {"pandas": (pd.DataFrame, pd.Series, data), "polars": (pl.DataFrame, pl.Series, data)}


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables(library):
    frame, series, data = tables()[library]
    weight = series([1.0, 2.0, 3.0])
    ((x, y, got),) = batches(open_source(frame(data), series([1, 2, 3]), weight, shuffle=False))
    np.testing.assert_array_equal(x, np.array([[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]], "float32"))
    assert x.dtype == "float32"
    # One column is a column, as in Keras, so that no target is broadcast against predictions (n, 1).
    np.testing.assert_array_equal(y, [[1], [2], [3]])
    assert y.dtype == "int64"
    assert got.shape == (3,)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_keep_their_kind_and_what_is_missing_is_nan(library):
    frame, _, _ = tables()[library]
    ((whole,),) = batches(open_source(frame({"a": [1, 2], "b": [3, 4]}), shuffle=False))
    assert whole.dtype == "int64"
    ((flags,),) = batches(open_source(frame({"a": [True, False]}), shuffle=False))
    assert flags.dtype == "bool"
    ((missing,),) = batches(open_source(frame({"a": [1, None], "b": [None, 2.5]}), shuffle=False))
    np.testing.assert_array_equal(missing, [[1, np.nan], [np.nan, 2.5]])


def test_pandas_own_number_types():
    import pandas as pd

    whole, floats, flags = pd.array([1, None], "Int64"), pd.array([1.5, 2.5], "Float32"), pd.array([True, False], "boolean")
    frame = pd.DataFrame({"a": whole, "b": floats, "c": flags})
    ((x,),) = batches(open_source(frame, shuffle=False))
    np.testing.assert_array_equal(x, [[1, 1.5, 1], [np.nan, 2.5, 0]])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_column_of_text_is_named(library):
    frame, _, _ = tables()[library]
    with pytest.raises(errors.DataError, match="column 'ocean' of x is of dtype"):
        open_source(frame({"a": [1.0], "ocean": ["near"]}))


VIEWS = [lambda m: m, lambda m: m[2:], lambda m: np.asarray(m)[2:], lambda m: {"a": m, "b": np.ones(len(m))}]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_memory_map_is_read_in_chunks_and_never_held(tmp_path, view, shuffle):
    np.save(tmp_path / "x.npy", np.arange(400.0).reshape(100, 4))
    mapped = view(np.load(tmp_path / "x.npy", mmap_mode="r"))
    source = open_source(mapped, batch_size=16, shuffle=shuffle, seed=1, chunk_bytes=1000)
    assert source.resident is None
    got = batches(source, 1)
    source.begin(2)
    block = source.take(1)
    assert block.arrays[0].dtype == "float32"
    assert not np.shares_memory(block.arrays[0], mapped["a"] if isinstance(mapped, dict) else mapped)
    source.close()
    held = batches(open_source(keras.tree.map_structure(np.array, mapped), batch_size=16, shuffle=shuffle, seed=1), 1)
    for (x,), (same,) in zip(got, held, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, x, same)


def test_arrays_are_resident_where_they_fit():
    x = np.ones((10, 4), "float64")
    assert open_source(x, resident_limit=160).resident[0].dtype == "float32"
    assert open_source(x, resident_limit=159).resident is None


CLASS_WEIGHT = {0: 1.0, 1: 3.0, 7: 5.0}
TARGETS = {
    "numbers": (np.array([0, 1, 2, 7]), [1, 3, 1, 5]),
    "a column": (np.array([[0.0], [1.0], [7.0], [1.0]]), [1, 3, 5, 3]),
    "one-hot": (np.eye(4)[[1, 0, 3, 1]], [3, 1, 1, 3]),
    "sequences": (np.eye(2)[[[0, 1], [1, 1], [0, 0], [1, 0]]], [[1, 3], [3, 3], [1, 1], [3, 1]]),
}


@OPEN
@pytest.mark.parametrize("kind", TARGETS)
def test_class_weights(opened, kind):
    y, expected = TARGETS[kind]
    source = opened({"a": np.arange(4)}, y, class_weight=CLASS_WEIGHT, batch_size=3, shuffle=False)
    weights = np.concatenate([weight for _, _, weight in batches(source)])
    np.testing.assert_array_equal(weights, expected)
    assert weights.dtype == "float32"
    times = opened(np.arange(4), y, np.array([[1.0], [2], [3], [4]]), class_weight=CLASS_WEIGHT, batch_size=3, shuffle=False)
    weights = np.concatenate([weight for _, _, weight in batches(times)])
    given = np.array([[1.0], [2], [3], [4]])
    np.testing.assert_array_equal(weights, np.reshape(expected, (4, -1)) * given)
    source.close()
    times.close()


def test_class_weights_in_fit_are_the_same():
    y = np.array([0, 1, 1, 0, 1, 2])
    (_, _, weights), *_ = batches(open_source(np.ones(6), y, class_weight={0: 2.0, 1: 0.5}, shuffle=False))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3, activation="softmax", kernel_initializer="zeros")])
    model.compile(loss="sparse_categorical_crossentropy", optimizer=keras.optimizers.SGD(0.0))
    fitted = model.fit(np.ones((6, 1)), y, class_weight={0: 2.0, 1: 0.5}, verbose=0).history["loss"][0]
    np.testing.assert_allclose(fitted, np.mean(weights) * np.log(3), rtol=1e-5)


def test_steps_without_data():
    source = open_source(None, steps_per_epoch=5)
    assert batches(source) == [()] * 5
    assert batches(source, 1, 3) == [()] * 2
    assert source.batches == 5


def test_the_last_part_is_split_off():
    x, y = {"a": np.arange(10)}, np.arange(10) * 2
    (train_x, train_y, train_w), (x, y, w) = split_validation(x, y, None, 0.25)
    assert (len(train_x["a"]), len(train_y), train_w, w) == (7, 7, None, None)
    np.testing.assert_array_equal(x["a"], [7, 8, 9])
    np.testing.assert_array_equal(y, [14, 16, 18])
    (_, _, train), (_, _, rest) = split_validation(np.arange(4), np.arange(4), np.arange(4), 0.5)
    assert (train.tolist(), rest.tolist()) == ([0, 1], [2, 3])


def test_a_split_memory_map_stays_one(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10.0))
    train, rest = split_validation(np.load(tmp_path / "x.npy", mmap_mode="r"), None, None, 0.2)
    assert open_source(*train).resident is None
    assert open_source(*rest).resident is None


def unfit():
    import pandas as pd
    import polars as pl
    import scipy.sparse
    import tensorflow as tf
    import torch

    three, four = np.ones(3), np.ones(4)
    pairs = [(three, three)]
    return {
        "unequal lengths": (lambda: open_source({"a": three}, four), r"same number of samples.*x \(3,\), y \(4,\)"),
        "unequal weights": (lambda: open_source(three, three, four), "same number of samples"),
        "no samples": (lambda: open_source(np.ones((0, 2))), "no samples"),
        "a number": (lambda: open_source(np.float32(3)), "first axis"),
        "text": (lambda: open_source(np.array(["a", "b"])), "of dtype <U1"),
        "objects": (lambda: open_source(np.array([[1], [1, 2]], dtype=object)), "of dtype object"),
        "dates": (lambda: open_source(np.array(["2020-01-01"], "datetime64[D]")), "of dtype datetime64"),
        "a masked array": (lambda: open_source(np.ma.masked_array([1.0, 2.0], [True, False])), "masked"),
        "a sparse matrix": (lambda: open_source(scipy.sparse.eye(3)), "sparse"),
        "a sparse tensor of tensorflow": (lambda: open_source(tf.sparse.from_dense([[1.0]])), "sparse"),
        "a ragged tensor": (lambda: open_source(tf.ragged.constant([[1.0], [1.0, 2.0]])), "ragged"),
        "a sparse tensor of torch": (lambda: open_source(torch.eye(3).to_sparse()), "sparse"),
        "a symbolic tensor": (lambda: open_source(keras.Input((3,))), "symbolic"),
        "lists of numbers": (lambda: open_source([[1.0], [2.0]], three), "np.asarray"),
        "a table that is not computed": (lambda: open_source(pl.LazyFrame({"a": [1]})), "collect"),
        "a column of classes": (lambda: open_source(pd.Series(["a", "b"], dtype="category")), "of dtype category"),
        "no arrays": (lambda: open_source({}, None), "holds no arrays"),
        "an empty list": (lambda: open_source([]), "holds no arrays"),
        "weights without targets": (lambda: open_source(three, None, three), "without y"),
        "no data and no steps": (lambda: open_source(None), "Give steps_per_epoch"),
        "no data to evaluate": (lambda: open_source(None, what="evaluate"), "Give steps[.]"),
        "batch_size 0": (lambda: open_source(three, batch_size=0), "batch_size is 0"),
        "batch_size 2.5": (lambda: open_source(three, batch_size=2.5), "batch_size is 2.5"),
        "batch_size True": (lambda: open_source(three, batch_size=True), "batch_size is True"),
        "no steps": (lambda: open_source(three, steps_per_epoch=0), "steps_per_epoch is 0"),
        "no validation steps": (lambda: open_source(three, steps_per_epoch=-1, what="validation"), "validation_steps is -1"),
        "shuffle in an array": (lambda: open_source(three, shuffle=np.array([1, 2])), "expected True, False"),
        "another shuffle": (lambda: open_source(three, shuffle="rows"), "shuffle is 'rows'"),
        "y beside batches": (lambda: open_source(iter(pairs), three), "y was given beside x"),
        "weights beside batches": (lambda: open_source(pairs, None, three), "sample_weight was given beside x"),
        "batch_size beside batches": (lambda: open_source(pairs, batch_size=32), "batch_size=32 was given beside list"),
        "replacement of batches": (lambda: open_source(pairs, shuffle="replacement"), "shuffles the rows of arrays"),
        "class_weight as a list": (lambda: open_source(three, three, class_weight=[1.0, 2.0]), "expected a dict"),
        "class_weight 'balanced'": (lambda: open_source(three, three, class_weight="balanced"), "expected a dict"),
        "class_weight without targets": (lambda: open_source(three, class_weight={0: 1.0}), "one array of targets"),
        "class_weight of two outputs": (lambda: open_source(three, [three, three], class_weight={0: 1.0}), "one array of targets"),
        "a path": (lambda: open_source("data.csv"), "x is str"),
        "a function": (lambda: open_source(lambda: pairs), "Call it"),
        "an object": (lambda: open_source(object()), "x is object; expected arrays"),
        "an object to validate on": (lambda: open_source(5, what="validation"), "validation_data is int; expected arrays"),
        "single samples": (lambda: open_source(torch.utils.data.TensorDataset(torch.ones(3))), "DataLoader"),
        "an endless dataset": (lambda: open_source(tf.data.Dataset.range(3).repeat()), "no end"),
        "an empty dataset": (lambda: open_source(tf.data.Dataset.range(0)), "no batches"),
        "an empty PyDataset": (lambda: open_source(Rows(0, 1)), "no batches"),
        "a split of 1": (lambda: split_validation(three, None, None, 1.0), "validation_split is 1.0"),
        "a split of nothing": (lambda: split_validation(three, None, None, 0.0), "validation_split is 0.0"),
        "a split that leaves nothing to train on": (lambda: split_validation(three, None, None, 0.9), "leaves nothing to train on"),
        "a split of batches": (lambda: split_validation(pairs, None, None, 0.5), "validation_data"),
    }


@pytest.mark.parametrize("case", list(unfit()))
def test_what_does_not_fit_is_said_before_anything_is_drawn(case):
    call, text = unfit()[case]
    with pytest.raises(errors.DataError, match=text):
        call()


def test_a_list_of_tuples_is_a_list_of_batches_and_any_other_is_several_inputs():
    one = np.ones(3)
    assert gives_batches([(one, one)])
    assert gives_batches([(one,)])
    assert not gives_batches([one, one])
    assert not gives_batches([(one, one)], one)
    assert not gives_batches(((one, one), (one, one)))
    assert not gives_batches({"a": (one, one)})


def test_training_s_batch_size_does_not_trouble_validation_batches():
    source = open_source([(np.ones(3),)], batch_size=32, what="validation")
    assert len(batches(source)) == 1


LARGER_THAN_MEMORY = """
import resource, sys
import numpy as np
from kustom.training.data import open_source

resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
x = np.lib.format.open_memmap(sys.argv[1], mode="r")
assert x.nbytes > 2 << 30
try:
    np.array(x)
except MemoryError:
    source = open_source(x, np.arange(len(x)), batch_size=256, seed=0)
    for epoch in range(2):
        source.begin(epoch)
        rows = 0
        while block := source.take(100):
            rows += block.batches * block.size
        assert rows == len(x)
    print("each row twice")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_file_of_two_gigabytes_is_read_in_one(tmp_path):
    # Nothing but its length is on the disk.
    np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype="float32", shape=(600_000, 900)).flush()
    call = [sys.executable, "-c", LARGER_THAN_MEMORY, str(tmp_path / "x.npy")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.stdout == "each row twice\n", done.stderr
