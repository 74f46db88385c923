"""Files with faults at random places: kustom's errors and no others, and nothing larger than what the file has.

They are mutated as archives, and, more, as members that are packed again with right sums, so that the faults reach the
readers behind. How long reading takes is bounded by how it is read, every structure once, so that no clock is needed there;
loading runs parts and computes, in a process of its own with a clock and a limit on memory.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kustom
from kustom import errors
from kustom.backends import keras as private
from kustom.saving import archive
from kustom.saving.limits import Limits
from kustom.saving.verdict import judge


@kustom.part(package="fuzzed")
class Held(keras.layers.Layer):
    """Settings of every kind that a config marks."""

    table: Any = None
    pair: Any = (1, (2.0, float("inf")))
    names: Any = None

    def call(self, x):
        return x


LIMITS = Limits(max_bytes=2**24)
SETTINGS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**30,
    1e308,
    "",
    "..",
    "/",
    "\x00",
    "relu",
    "keras",
    "Lambda",
    [],
    {},
    [[]],
    [None],
    {"class_name": 1},
]
NUMBERS = [0, 1, 7, 8, 95, 96, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**64 - 2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> list[dict[str, bytes]]:
    """The members of good files, with what Keras writes: graphs, sequences, compiled ones, vocabularies; and gzip."""
    folder = tmp_path_factory.mktemp("bases")
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, activation="relu", kernel_regularizer="l2")(inputs)
    outputs = keras.layers.Concatenate()([hidden, hidden * 2])[:, :2]
    compiled = keras.Model(inputs, outputs)
    compiled.compile("sgd", "mse", metrics=["mae", keras.metrics.AUC(num_thresholds=4)])
    recurrent = keras.Sequential([keras.Input((2, 3)), keras.layers.Bidirectional(keras.layers.LSTM(2)), keras.layers.Dropout(0.5)])
    words = keras.Sequential([keras.layers.Embedding(5, 2, dtype="bfloat16")])
    words.build((None, 3))
    own = keras.Sequential([keras.Input((3,)), Held(np.eye(2), names={1: b"one", "a": np.array(["x"])})])
    found = []
    looked_up = keras.Sequential([keras.Input((1,), dtype="string"), keras.layers.StringLookup(vocabulary=["one", "two"])])
    for number, model in enumerate((compiled, recurrent, words, own, looked_up)):
        model.save(folder / f"{number}.keras")
        with archive.read(folder / f"{number}.keras") as read:
            found.append({name: bytes(read.data(name)) for name in read.members})
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.arange(60.0).reshape(6, 10), chunks=(4, 4), compression="gzip")
        for number in range(20):
            file[f"layers/dense_{number}/vars/0"] = np.full((number % 3,), number, "int16")
    found[-1] |= {"model.weights.h5": data.getvalue(), "assets/words/vocabulary.txt": b"one\ntwo\n"}
    return found


def packed(members: dict[str, bytes]) -> bytes:
    """An archive with a manifest, whose sums are right."""
    file = io.BytesIO()
    archive.write(file, [*members.items(), ("kustom.json", lambda sums: json.dumps({"sums": dict(sums)}).encode())])
    return file.getvalue()


def in_bytes(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed, lost, doubled, or replaced by numbers that mean something."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at = draw.randrange(len(changed) + 1)
        kind = draw.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at : at + draw.choice([1, 2, 8, 64])]
        elif kind == 2:
            changed[at:at] = draw.randbytes(draw.choice([1, 2, 8, 64]))
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            end = min(len(changed), at + draw.choice([4, 8, 40, 64]))
            changed[at:at] = changed[at:end]
        else:
            changed[at : at + 8] = struct.pack("<Q", draw.choice([*NUMBERS, len(data), draw.randrange(len(data))]))
    return bytes(changed)


def in_fields(data: bytes, draw: random.Random) -> bytes:
    """Fields of an HDF5 file replaced, its length kept: addresses, sizes, counts, kinds."""
    changed = bytearray(data)
    marks = [at for mark in (b"TREE", b"HEAP", b"SNOD", b"GCOL") for at in _places(data, mark)]
    for _ in range(draw.choice([1, 1, 2, 3])):
        near = draw.choice([0, *marks]) if draw.random() < 0.7 else draw.randrange(len(data) - 8)
        at = min(len(data) - 8, near + draw.randrange(96))
        size = draw.choice([1, 2, 4, 8])
        value = draw.choice(
            [
                *NUMBERS,
                *marks,
                draw.randrange(len(data)),
                int.from_bytes(data[at : at + size], "little") + draw.choice([-8, -1, 1, 8]),
            ]
        )
        changed[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(changed)


def _places(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def in_values(data: bytes, draw: random.Random) -> bytes:
    """Values of a JSON member replaced, moved, doubled or lost."""
    tree = json.loads(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        places = list(_containers(tree))
        if not places:
            break
        box, key = draw.choice(places)
        kind = draw.randrange(4)
        if kind == 0:
            box[key] = copy.deepcopy(draw.choice(ODD))
        elif kind == 1:
            other, its = draw.choice(places)
            box[key] = json.loads(json.dumps(other[its]))
        elif kind == 2 and isinstance(box, dict):
            del box[key]
        else:
            value = box[key]
            box[key] = value * 2 if isinstance(value, list | str) else -value if isinstance(value, int | float) else [value]
    return json.dumps(tree).encode()


def _containers(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _containers(value)


def as_archives(members: dict[str, bytes], draw: random.Random) -> bytes:
    return in_bytes(packed(members), draw)


def as_members(members: dict[str, bytes], draw: random.Random) -> bytes:
    name = draw.choice(
        ["config.json", "config.json", "config.json", "model.weights.h5", "model.weights.h5", "model.weights.h5", "metadata.json"]
    )
    ways: list[Callable[[bytes, random.Random], bytes]] = [
        in_bytes,
        in_fields if name.endswith("h5") else in_values,
        in_fields if name.endswith("h5") else in_values,
    ]
    return packed({**members, name: draw.choice(ways)(members[name], draw)})


def hold(data: bytes) -> bool:
    """Read a file to its last number; whether it was accepted, given that compressed numbers are only read when wanted."""
    try:
        with archive.read(io.BytesIO(data), LIMITS) as found:
            judge(found, limits=LIMITS, registered=private.registry()).hold()
            found.verify()
            weights = found.weights
    except errors.FileError:
        return False
    total = 0
    for dataset in weights.walk():
        try:
            total += dataset.read().nbytes
        except errors.CorruptFileError:
            assert dataset.chunks is not None
    assert total <= LIMITS.max_ratio * len(data) + LIMITS.max_bytes
    return True


def run(bases: list[dict[str, bytes]], mutate: Callable[..., bytes], examples: int) -> None:
    seen: set[bool] = set()

    @settings(max_examples=examples, **SETTINGS)
    @given(st.integers(0, 2**64 - 1))
    def each(seed: int) -> None:
        draw = random.Random(seed)
        data = mutate(draw.choice(bases), draw)
        accepted = hold(data)
        seen.add(accepted)
        if seed % 4 == 0:
            try:
                found = archive.read(io.BytesIO(data), LIMITS, hold=False, faults=True)
            except errors.FileError:
                return
            refused = found.faults or judge(found, limits=LIMITS, registered=private.registry()).anomalies
            assert bool(refused) is not accepted

    each()
    assert False in seen


@pytest.mark.parametrize(("mutate", "examples"), [(as_archives, 600), (as_members, 1400)])
def test_a_file_with_faults_gives_kustoms_errors_and_no_others(bases, mutate, examples):
    run(bases, mutate, examples)


@pytest.mark.slow
@pytest.mark.parametrize(("mutate", "examples"), [(as_archives, 15_000), (as_members, 35_000)])
def test_many_files_with_faults(bases, mutate, examples):
    run(bases, mutate, examples)


# Loads files whose parts were mutated, with right sums, in a process that may take so much memory, and so much time a file.
CHILD = """
import io, json, pickle, random, resource, signal, sys, warnings
sys.path[:0] = [sys.argv[1]]
import kustom
import test_fuzzed_files as files
from kustom import errors

found, seeds, memory, seconds = pickle.load(open(sys.argv[2], "rb"))
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
warnings.simplefilter("ignore")
told = {}
for seed in seeds:
    draw = random.Random(seed)
    data = files.as_loaded(draw.choice(found), draw)
    # Without a handler, the clock ends the process, whatever runs; the last seed that was written is the one.
    print(seed, flush=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        kustom.load(io.BytesIO(data))
        told["loaded"] = told.get("loaded", 0) + 1
    except errors.FileError as error:
        told[type(error).__name__] = told.get(type(error).__name__, 0) + 1
    signal.setitimer(signal.ITIMER_REAL, 0)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> list[dict[str, bytes]]:
    """The members of small files that kustom wrote, manifests among them."""
    folder = tmp_path_factory.mktemp("saved")
    one, other = keras.Input((4,), name="one"), keras.Input((3,), dtype="int32", name="other")
    joined = keras.layers.Concatenate()([one, keras.layers.Flatten()(keras.layers.Embedding(5, 2)(other))])
    graph = keras.Model({"one": one, "other": other}, keras.layers.Dense(2)(joined))
    own = keras.Sequential([keras.Input((3,)), Held(np.eye(2), names={1: b"one", "a": np.array(["x"])}), keras.layers.Dense(1)])
    own.compile("sgd", keras.losses.Huber(), metrics=[keras.metrics.MeanSquaredError()])
    found = []
    for number, model in enumerate((graph, own)):
        kustom.save(model, folder / f"{number}.keras")
        with archive.read(folder / f"{number}.keras") as read:
            found.append({name: bytes(read.data(name)) for name in read.members})
    return found


def as_loaded(members: dict[str, bytes], draw: random.Random) -> bytes:
    """A file with a manifest, in which the config, the manifest or the weights are others, and the sums are right."""
    name = draw.choice(["kustom.json", "kustom.json", "kustom.json", "config.json", "config.json", "model.weights.h5"])
    if name == "kustom.json":
        # Most of a manifest is what was recorded.
        manifest = json.loads(members[name])
        key = draw.choice([key for key in manifest if key != "sums"])
        changed = {**manifest, **json.loads(in_values(json.dumps({key: manifest[key]}).encode(), draw))}
        members = {**members, name: json.dumps(changed).encode()}
    else:
        members = {**members, name: (in_fields if name.endswith("h5") else in_values)(members[name], draw)}
    manifest = json.loads(members["kustom.json"])
    file = io.BytesIO()
    rest = [(key, member) for key, member in members.items() if key != "kustom.json"]
    archive.write(file, [*rest, ("kustom.json", lambda sums: json.dumps({**manifest, "sums": dict(sums)}).encode())])
    return file.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory and its measure are those of Linux")
@pytest.mark.parametrize("examples", [25, pytest.param(5000, marks=pytest.mark.slow)])
def test_loading_a_file_with_faults_gives_kustoms_errors_in_bounded_time_and_memory(saved, tmp_path, examples):
    given_to_it = tmp_path / "files.pickle"
    # The same files each time, so that a fault that was found is found again.
    given_to_it.write_bytes(pickle.dumps((saved, range(examples), 2**30, 20)))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(given_to_it)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-200:]}\n{done.stderr[-2000:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    assert sum(told.values()) == examples
    assert told["loaded"] > 0
    assert "FormatError" in told


def test_the_files_that_they_are_made_from_are_fine(bases):
    assert all(hold(packed(members)) for members in bases)
