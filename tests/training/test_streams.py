"""Batches that a source makes: each taken once, drawn ahead and never lost."""

from __future__ import annotations

import gc
import queue
import threading
import weakref

import keras
import numpy as np
import pytest
from drawing import AGAIN, ONCE, Rows, batches, first, in_generator, in_list, in_loader, in_tf_data
from hypothesis import given, settings
from hypothesis import strategies as st

from kustom import errors
from kustom.training import onepass
from kustom.training.data import open_source

SAMPLES = st.integers(1, 40)
SIZES = st.integers(1, 12)
TAKES = st.lists(st.integers(1, 9), min_size=1, max_size=4)
EVERY = {**AGAIN, **ONCE}


def drawing_threads():
    return [thread for thread in threading.enumerate() if thread.name == "kustom data"]


@pytest.mark.parametrize("kind", EVERY)
def test_every_source_gives_every_batch_once(kind):
    source = open_source(EVERY[kind](23, 5), shuffle=False)
    got = batches(source)
    source.close()
    assert first(got) == list(range(23))
    assert [len(x) for x, _ in got] == [5, 5, 5, 5, 3]
    for x, y in got:
        np.testing.assert_array_equal(x + 0.5, y)
        assert (x.dtype, y.dtype) == ("int64", "float32")


@settings(deadline=None, max_examples=40)
@given(SAMPLES, SIZES, TAKES, st.integers(1, 4))
def test_a_list_and_a_generator_give_every_batch_once(samples, size, most, room):
    for made in (in_list, in_generator):
        source = open_source(made(samples, size), chunk_batches=room)
        assert first(batches(source, most=most)) == list(range(samples))
        source.close()


@settings(deadline=None, max_examples=40)
@given(SAMPLES, SIZES, TAKES, st.integers(1, 9))
def test_epochs_of_steps_are_cut_from_passes(samples, size, most, steps):
    source = open_source(in_list(samples, size), steps_per_epoch=steps)
    got = [args for epoch in range(4) for args in batches(source, epoch, most=most)]
    source.close()
    assert len(got) == 4 * steps
    assert first(got) == first((in_list(samples, size) * 4 * steps)[: 4 * steps])


@settings(deadline=None, max_examples=40)
@given(SAMPLES, SIZES, TAKES, st.integers(1, 9))
def test_an_iterator_goes_on_where_the_last_epoch_ended(samples, size, most, steps):
    total = -(-samples // size)
    iterator = in_generator(samples, size)
    source = open_source(iterator, steps_per_epoch=steps)
    got = []
    for epoch in range(total // steps):
        got += batches(source, epoch, most=most)
        assert len(got) == (epoch + 1) * steps
    source.close()
    # What the epochs did not need is the user's.
    got += [(x, y) for x, y in iterator]
    assert first(got) == list(range(samples))


@pytest.mark.parametrize("kind", AGAIN)
def test_what_can_be_iterated_anew_is(kind):
    source = open_source(AGAIN[kind](23, 5), shuffle=False)
    for epoch in range(3):
        assert first(batches(source, epoch)) == list(range(23))
    source.close()


@pytest.mark.parametrize("steps", [None, 2, 7])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kind", AGAIN)
def test_an_epoch_begun_in_its_middle_is_the_rest_of_the_whole(kind, shuffle, steps):
    options = {"steps_per_epoch": steps, "shuffle": shuffle, "seed": 5}
    source = open_source(AGAIN[kind](23, 5), **options)
    whole = [batches(source, epoch) for epoch in range(3)]
    source.close()
    for epoch, at in [(0, 1), (1, 0), (2, 1), (2, 2)]:
        resumed = open_source(AGAIN[kind](23, 5), **options)
        assert first(batches(resumed, epoch, at)) == first(whole[epoch][at:])
        if epoch < 2:
            assert first(batches(resumed, epoch + 1)) == first(whole[epoch + 1])
        resumed.close()


def test_an_iterator_drops_what_a_resumed_epoch_has_had():
    source = open_source(in_generator(20, 2), steps_per_epoch=5)
    assert first(batches(source, 3, 2)) == list(range(4, 10))
    assert first(batches(source, 4)) == list(range(10, 20))


@pytest.mark.parametrize("kind", ["tf.data", "DataLoader", "PyDataset", "list"])
def test_the_number_of_batches_is_known_where_the_source_knows_it(kind):
    assert open_source(EVERY[kind](23, 5)).batches == 5
    assert open_source(EVERY[kind](23, 5), steps_per_epoch=3).batches == 3


def test_the_number_of_batches_is_unknown_where_it_is():
    import torch

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([1.0, 2.0, 3.0])

    loader = torch.utils.data.DataLoader(Endless(), batch_size=2)
    for unknown in (in_generator(9, 2), in_tf_data(9, 2).filter(lambda x, y: True), loader):
        source = open_source(unknown)
        assert source.batches is None
        assert len(batches(source)) in (2, 5)
        source.close()


def test_nothing_is_drawn_before_it_is_asked_for():
    drawn = []

    def generator():
        for i in range(4):
            drawn.append(i)
            yield np.full(3, i)

    source = open_source(generator(), steps_per_epoch=2)
    source.begin(0)
    assert drawn == []
    assert len(batches(source)) == 2
    assert drawn == [0, 1]
    source.close()
    assert drawn == [0, 1]


@pytest.mark.parametrize("kind", ONCE)
def test_what_was_drawn_and_not_taken_comes_next(kind):
    iterator = ONCE[kind](40, 2)
    source = open_source(iterator, chunk_batches=4)
    source.begin(0)
    taken = source.take(3)
    assert taken.batches == 3
    source.close()
    rest = open_source(iterator, chunk_batches=3)
    assert first(batches(rest)) == list(range(6, 40))
    rest.close()
    assert not [held for held in onepass._taps.values() if held[1] is iterator]


def test_a_second_epoch_begun_early_loses_nothing():
    source = open_source(in_generator(40, 2), steps_per_epoch=10)
    source.begin(0)
    source.take(1)
    assert first(batches(source, 1)) == list(range(2, 22))
    source.close()


def test_what_is_kept_dies_with_the_iterator():
    iterator = in_generator(40, 2)
    source = open_source(iterator)
    source.begin(0)
    source.take(1)
    source.close()
    number, dead = len(onepass._taps), weakref.ref(iterator)
    assert onepass._taps[id(iterator)][0].kept
    del source, iterator
    gc.collect()
    assert dead() is None
    assert len(onepass._taps) == number - 1


class Trouble(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_the_users_exception_comes_through_after_the_batches_before_it(after):
    trouble = Trouble("mine")

    def generator():
        for i in range(after):
            yield np.full(2, i)
        raise trouble

    source = open_source(generator())
    source.begin(0)
    assert [source.take(1).batches for _ in range(after)] == [1] * after
    with pytest.raises(Trouble) as caught:
        source.take(1)
    assert caught.value is trouble
    source.close()


def test_an_exception_that_nobody_saw_is_kept_too():
    def generator():
        yield np.zeros(2)
        yield np.ones(2)
        raise Trouble

    iterator = generator()
    source = open_source(iterator)
    source.begin(0)
    source.take(1)
    source.close()
    rest = open_source(iterator)
    rest.begin(0)
    assert rest.take(1).batches == 1
    with pytest.raises(Trouble):
        rest.take(1)
    rest.close()


def test_a_slow_source_is_taken_as_it_comes():
    channel = queue.Queue()

    def generator():
        while (item := channel.get()) is not None:
            yield item

    source = open_source(generator())
    source.begin(0)
    if keras.backend.backend() == "torch":
        channel.put(np.zeros(2))  # where two are drawn at first, to see whether they are random
    for i in range(3):
        channel.put(np.full(2, i))
        block = source.take(100)
        assert block.batches in (1, 2)
    channel.put(None)
    assert source.take(100) is None
    source.close()


def test_a_source_that_does_not_come_back_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("kustom.training.ahead.STOPPING", 0.05)
    channel = queue.Queue()

    def generator():
        while (item := channel.get()) is not None:
            yield item

    iterator = generator()
    source = open_source(iterator)
    for i in range(3):
        channel.put(np.full(2, i))
    source.begin(0)
    assert source.take(1).batches == 1
    source.close()
    # The thread is in the middle of the fourth, which is not lost when it comes.
    channel.put(np.full(2, 3))
    channel.put(None)
    rest = open_source(iterator)
    assert first(batches(rest)) == [1, 1, 2, 2, 3, 3]
    rest.close()


def test_no_thread_is_left():
    before = drawing_threads()
    source = open_source(in_generator(1000, 1), chunk_batches=2)
    source.begin(0)
    source.take(1)
    source.close()
    whole = open_source(in_list(20, 3))
    batches(whole)
    assert drawing_threads() == before


def test_an_iterator_that_ends_early_ends_the_training():
    source = open_source(in_generator(10, 2), steps_per_epoch=4)
    assert len(batches(source)) == 4
    assert not source.ended
    with pytest.warns(errors.DataWarning, match="generator ended, with 1 of 4 batches"):
        assert len(batches(source, 1)) == 1
    assert source.ended


def test_an_iterator_that_ends_in_an_evaluation_is_said_to():
    source = open_source(in_generator(10, 2), steps_per_epoch=8, what="validation")
    with pytest.warns(errors.DataWarning, match="with 5 of 8 batches in this evaluation; what they measure is reported"):
        assert len(batches(source)) == 5


def test_an_iterator_has_nothing_for_a_second_epoch():
    source = open_source(in_generator(10, 2))
    assert len(batches(source)) == 5
    with pytest.warns(errors.DataWarning, match="nothing for another epoch"):
        assert batches(source, 1) == []
    assert source.ended


class Unsized:
    """Can be iterated anew, and does not know its length."""

    def __iter__(self):
        return in_generator(10, 2)


def test_an_evaluation_measures_each_batch_once():
    x = np.arange(10.0, dtype="float32")

    def measured(source, steps, what):
        size = 2 if source is x else None
        found = open_source(source, steps_per_epoch=steps, batch_size=size, shuffle=False, what=what)
        return [len(batches(found)) for _ in range(2)]

    for source in (x, in_list(10, 2), Unsized()):
        for what in ("evaluate", "validation"):
            assert measured(source, 3, what) == [3, 3]
            with pytest.warns(errors.DataWarning, match="each is measured once"):
                assert measured(source, 8, what) == [5, 5]


def test_an_iterator_that_is_used_up_is_an_error():
    iterator = in_generator(10, 2)
    list(iterator)
    for steps in (None, 3):
        with pytest.raises(errors.DataError, match="used up before"):
            batches(open_source(iterator, steps_per_epoch=steps))


@pytest.mark.parametrize("steps", [None, 3])
def test_a_pass_that_gives_nothing_is_an_error(steps):
    class Nothing:
        def __iter__(self):
            return iter([])

    with pytest.raises(errors.DataError, match="no batch at all"):
        batches(open_source(Nothing(), steps_per_epoch=steps))


def test_batches_of_other_shapes_are_blocks_of_their_own():
    shapes = [(4, 2), (4, 2), (4, 3), (4, 3), (4, 3), (4, 2), (2, 2)]
    source = open_source([(np.ones(shape),) for shape in shapes])
    source.begin(0)
    seen = []
    while block := source.take(10):
        seen.append((block.batches, block.size, block.arrays[0].shape[1:]))
    assert seen == [(2, 4, (4, 2)), (3, 4, (4, 3)), (1, 4, (4, 2)), (1, 2, (2, 2))]
    source.close()


def test_chunks_of_a_shape_have_one_length():
    source = open_source(in_generator(98, 4), chunk_bytes=4 * 12 * 5)
    source.begin(0)
    lengths = []
    while block := source.take(100):
        lengths.append(block.arrays[0].shape)
    assert lengths == [(5, 4)] * 5 + [(1, 2)]
    source.close()


def test_numbers_beside_arrays_and_batches_of_nothing():
    got = batches(open_source(({"x": np.ones(3), "temperature": np.float32(i)},) for i in range(3)))
    assert [args[0]["temperature"] for args in got] == [0, 1, 2]
    assert batches(open_source(() for _ in range(3))) == [()] * 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.ones(2), 1),
        ((np.ones(2),), 1),
        ([np.ones(2), np.ones(2)], 2),
        ((np.ones(2), None), 1),
        ((np.ones(2), np.ones(2), None), 2),
        ((np.ones(2), np.ones(2), np.ones(2)), 3),
        ({"a": np.ones(2), "b": [np.ones(2)]}, 1),
    ],
)
def test_a_batch_is_x_or_up_to_three(given, expected):
    (args,) = batches(open_source(iter([given])))
    assert len(args) == expected


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([(np.ones(2),) * 4], "has 4 items"),
        ([(np.ones(2), np.ones(3))], r"shapes \(2,\), \(3,\)"),
        ([(np.ones((0, 2)),)], "at least 1"),
        ([(np.array(["a"]),)], "of dtype <U1"),
        ([([1.0, 2.0],)], "np.asarray"),
        ([(np.ones(2),), (np.ones(2), np.ones(2))], "different structures"),
    ],
)
def test_a_batch_that_does_not_fit_is_said(given, text):
    with pytest.raises(errors.DataError, match=text):
        batches(open_source(iter(given)))


def test_batches_of_other_structures_are_refused_across_chunks_too():
    source = open_source(iter([{"a": np.ones(2)}, {"b": np.ones(2)}]), chunk_batches=1)
    with pytest.raises(errors.DataError, match="different structures"):
        batches(source)
    source.close()


@pytest.mark.parametrize("kind", EVERY)
def test_class_weights(kind):
    source = open_source(EVERY[kind](6, 4), class_weight={0: 2.0, 4: 5.0}, shuffle=False)
    got = batches(source)
    source.close()
    assert np.concatenate([weight for _, _, weight in got]).tolist() == [2, 1, 1, 5, 5, 1]
    assert {weight.dtype for _, _, weight in got} == {np.dtype("float32")}


def test_class_weights_multiply_given_weights_and_leave_what_is_kept_alone():
    given = [(np.zeros(2), np.array([0, 1]), np.array([2.0, 3.0])) for _ in range(6)]
    iterator = iter(given)
    source = open_source(iterator, class_weight={1: 10.0}, chunk_batches=3)
    source.begin(0)
    block = source.take(1)
    assert source.unflatten(block.arrays)[2][0].tolist() == [2, 30]
    source.close()
    rest = open_source(iterator, class_weight={1: 10.0})
    assert [weight.tolist() for _, _, weight in batches(rest)] == [[2, 30]] * 5
    rest.close()
    with pytest.raises(errors.DataError, match="one array of targets"):
        batches(open_source(iter([(np.ones(2),)]), class_weight={0: 1.0}))


def test_a_pydataset_is_shuffled_by_batches_and_told_of_epochs():
    dataset = Rows(20, 4)
    source = open_source(dataset, seed=3)
    for epoch in range(2):
        got = [x[0] // 4 for x, _ in batches(source, epoch)]
        assert got == np.random.default_rng([3, epoch]).permutation(5).tolist()
    assert dataset.calls == ["begin", "end"] * 2
    source.close()


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("processes", [False, True])
def test_a_pydatasets_workers_keep_the_order(processes, steps):
    import warnings

    plain = open_source(Rows(20, 4), seed=3, steps_per_epoch=steps)
    dataset = Rows(20, 4, workers=2, use_multiprocessing=processes, max_queue_size=3)
    source = open_source(dataset, seed=3, steps_per_epoch=steps)
    with warnings.catch_warnings():
        # JAX and Python warn of the fork, which is Keras's own way here.
        warnings.simplefilter("ignore")
        for epoch in range(2):
            assert first(batches(source, epoch)) == first(batches(plain, epoch))
        source.close()
    assert dataset.calls == ["begin", "end"] * 2
    plain.close()


def test_workers_of_a_pydataset_work_at_once():
    meeting = threading.Barrier(3, timeout=30)

    class Meeting(Rows):
        def __getitem__(self, number):
            meeting.wait()
            return super().__getitem__(number)

    source = open_source(Meeting(12, 2, workers=3), shuffle=False)
    assert first(batches(source)) == list(range(12))
    source.close()


def test_an_endless_pydataset_needs_steps():
    class Endless(keras.utils.PyDataset):
        @property
        def num_batches(self):
            return None

        def __getitem__(self, number):
            return np.full(2, number)

    with pytest.raises(errors.DataError, match="no end"):
        open_source(Endless())
    source = open_source(Endless(), steps_per_epoch=3)
    assert first(batches(source))[::2] == [0, 1, 2]
    assert first(batches(source, 1))[::2] == [3, 4, 5]
    assert first(batches(source, 1_000_000, 1))[::2] == [3_000_001, 3_000_002]
    source.close()


def test_torchs_random_numbers_are_drawn_at_the_same_points_of_each_run():
    if keras.backend.backend() != "torch":
        pytest.skip("only there a step draws from torch's generator")
    import torch

    def loader():
        x = torch.arange(12)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2, shuffle=True)

    def noisy():
        for _ in range(6):
            yield torch.rand(2)

    for made, apart in ((loader, True), (noisy, False)):
        runs = []
        for _ in range(2):
            torch.manual_seed(0)
            source = open_source(made())
            source.begin(0)
            got = []
            while block := source.take(1):
                got.append((block.arrays[0][block.offset].tolist(), torch.rand(1).item()))
            runs.append(got)
            assert source._apart is apart
            source.close()
        assert runs[0] == runs[1]


@pytest.mark.parametrize("steps", [None, 3])
def test_a_shuffled_tf_dataset_taken_up_again_has_the_order_of_the_whole(steps):
    def shuffled():
        return in_tf_data(20, 4).unbatch().shuffle(20, seed=1).batch(4).apply(lambda d: d.take(5))

    import tensorflow as tf

    def known():
        dataset = tf.data.Dataset.range(20).shuffle(20, seed=1).batch(4)
        assert int(dataset.cardinality()) == 5
        return dataset

    for made in (shuffled, known):
        source = open_source(made(), steps_per_epoch=steps)
        whole = [first(batches(source, epoch)) for epoch in range(4)]
        source.close()
        assert len({tuple(order) for order in whole}) == 4
        resumed = open_source(made(), steps_per_epoch=steps)
        assert first(batches(resumed, 2, 1)) == whole[2][4:]
        assert first(batches(resumed, 3)) == whole[3]
        resumed.close()


def test_a_source_is_closed_twice_and_begun_again():
    source = open_source(in_list(20, 3))
    source.begin(0)
    source.take(1)
    source.close()
    source.close()
    assert source.take(1) is None
    assert first(batches(source)) == list(range(20))
    loader = open_source(in_loader(20, 3), steps_per_epoch=4)
    loader.begin(0)
    loader.take(1)
    assert len(batches(loader, 0)) == 4
    loader.close()
