"""The strict reader of HDF5: it reads what Keras writes as the library does, and refuses the rest."""

from __future__ import annotations

import io
import struct
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kustom import errors
from kustom.saving import hdf5
from kustom.saving.limits import DEFAULT, Limits


def read(data: bytes, limits: Limits = DEFAULT, found=None):
    view = memoryview(data)
    return hdf5.read(lambda offset, size: view[offset : offset + size], len(data), limits, file="a.keras", found=found)


def written(fill) -> bytes:
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        fill(file)
    return data.getvalue()


def by_library(data: bytes) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(lambda name, each: found.update({name: np.array(each)}) if isinstance(each, h5py.Dataset) else None)
    return found


def agree(data: bytes) -> None:
    expected = by_library(data)
    mine = {dataset.path: dataset for dataset in read(data).walk()}
    assert mine.keys() == expected.keys()
    for path, values in expected.items():
        got = mine[path].read()
        assert got.shape == values.shape == mine[path].shape
        assert got.tobytes() == values.tobytes()
        assert not got.flags.writeable


def weights_of(model, path) -> bytes:
    model.save(path / "model.keras")
    with zipfile.ZipFile(path / "model.keras") as file:
        return file.read("model.weights.h5")


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "float16", "float32", "float64"]
)
def test_every_dtype_of_keras_is_read_as_the_library_reads_it(dtype):
    def fill(file):
        for number, shape in enumerate([(), (3,), (2, 3), (0, 4), (1, 1, 1, 2)]):
            file[f"a/vars/{number}"] = (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)

    data = written(fill)
    agree(data)
    assert {each.dtype for each in read(data).walk()} == {dtype}


def test_bfloat16_comes_back_as_itself():
    values = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)

    def fill(file):
        file.create_dataset("vars/0", data=values).attrs["dtype"] = "bfloat16"

    (dataset,) = read(written(fill)).walk()
    assert dataset.dtype == "bfloat16"
    assert dataset.read().dtype == ml_dtypes.bfloat16
    assert (dataset.read() == values).all()


def test_the_weights_of_models_are_read(tmp_path):
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(2, 2, dtype="mixed_float16")(inputs)
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    x = keras.layers.Bidirectional(keras.layers.GRU(2))(keras.layers.Reshape((9, 2))(x))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    agree(weights_of(model, tmp_path))


def test_a_group_of_thousands_is_read():
    def fill(file):
        for number in range(700):
            group = file.create_group(f"layers/layer_{number}/vars")
            group.attrs["name"] = f"a layer {number}"
            group["0"] = np.int32(number)

    data = written(fill)
    agree(data)
    assert read(data).get("layers/layer_7/vars").attributes == {"name": "a layer 7"}
    with pytest.raises(errors.LimitError, match="max_arrays="):
        read(data, Limits(max_arrays=2000))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 5), st.sampled_from(["f4", "i2", "u1"]))
def test_compressed_arrays_are_read_as_the_library_reads_them(shape, chunk, dtype):
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    chunks = tuple(min(chunk, length) for length in shape)
    agree(written(lambda file: file.create_dataset("vars/0", data=values, chunks=chunks, compression="gzip")))


def test_a_large_compressed_array_with_a_deep_tree_of_chunks():
    values = np.random.default_rng(0).normal(size=(300, 60)).astype("float32")
    agree(written(lambda file: file.create_dataset("vars/0", data=values, chunks=(1, 6), compression="gzip")))


def test_an_empty_file_is_read():
    assert list(read(written(lambda file: None)).walk()) == []


REFUSED = {
    "soft link": (lambda f: f.__setitem__("a", h5py.SoftLink("/b")), "symbolic link"),
    "external link": (lambda f: f.__setitem__("a", h5py.ExternalLink("x.h5", "/")), "newer form"),
    "hard link": (lambda f: (f.__setitem__("a", [1.0]), f.__setitem__("b", f["a"])), "2 names"),
    "hard link of a group": (lambda f: f.create_group("a/b").__setitem__("c", f["a"]), "2 names"),
    "external storage": (lambda f: f.create_dataset("a", (3,), "f4", external=[("x", 0, 12)]), "external storage"),
    "lzf": (lambda f: f.create_dataset("a", data=np.zeros((99, 9)), compression="lzf"), "filter 32000"),
    "shuffle": (lambda f: f.create_dataset("a", data=np.zeros((99, 9)), compression="gzip", shuffle=True), "2 filters"),
    "checksum": (lambda f: f.create_dataset("a", data=np.zeros((99, 9)), fletcher32=True), "the filter 3,"),
    "growing": (lambda f: f.create_dataset("a", data=np.zeros((9, 9)), maxshape=(None, 9), compression="gzip"), "may grow"),
    "chunks alone": (lambda f: f.create_dataset("a", data=np.zeros((9, 9)), chunks=(3, 3)), "not compressed"),
    "never written": (lambda f: f.create_dataset("a", (1000, 1000), "f4"), "stores 0"),
    "chunks never written": (lambda f: f.create_dataset("a", (1000, 1000), "f4", compression="gzip"), "that stores 0"),
    "text": (lambda f: f.create_dataset("a", data=np.array([b"abc"])), "text in the place of numbers"),
    "text of any length": (lambda f: f.create_dataset("a", data="abc"), "text in the place of numbers"),
    "other byte order": (lambda f: f.create_dataset("a", data=np.zeros(3, ">f4")), "values of the kind 1"),
    "records": (lambda f: f.create_dataset("a", data=np.zeros(3, [("x", "f4")])), "values of the kind 6"),
    "complex": (lambda f: f.create_dataset("a", data=np.zeros(3, "c8")), "values of the kind 6"),
    "an enumeration": (lambda f: f.create_dataset("a", (2,), h5py.enum_dtype({"A": 1}, "i1"), data=[1, 1]), "values of the kind 8"),
    "opaque": (lambda f: f.create_dataset("a", data=np.zeros(3, "V2")), "no bfloat16"),
    "references": (lambda f: f.create_dataset("a", data=[f.ref], dtype=h5py.ref_dtype), "references"),
    "nothing": (lambda f: f.create_dataset("a", data=h5py.Empty("f4")), "dataspace"),
    "an array as attribute": (lambda f: f.attrs.__setitem__("a", np.zeros(3)), "is no single text"),
    "order of making": (lambda f: f.create_group("a", track_order=True), "newer form"),
}


@pytest.mark.parametrize(("fill", "message"), REFUSED.values(), ids=REFUSED)
def test_what_keras_does_not_write_is_refused_by_name(fill, message):
    data = written(fill)
    with pytest.raises((errors.UnsafeFileError, errors.FormatError), match=message) as caught:
        read(data)
    assert str(caught.value).startswith("a.keras: model.weights.h5: /")
    found: list[errors.FileError] = []
    read(data, found=found)
    assert str(caught.value) in map(str, found)


def test_a_bomb_is_refused_before_it_is_unpacked():
    data = written(lambda f: f.create_dataset("a", data=np.zeros((2**12, 2**10), "f4"), chunks=(2**12, 2**10), compression="gzip"))
    with pytest.raises(errors.LimitError, match="max_ratio="):
        read(data)
    (dataset,) = read(data, Limits(max_ratio=2000)).walk()
    assert not dataset.read().any()


def test_newer_forms_of_the_whole_file_are_refused_by_name():
    data = io.BytesIO()
    with h5py.File(data, "w", libver="latest") as file:
        file["a"] = [1.0]
    with pytest.raises(errors.FormatError, match=r"a superblock of version [23], which Keras does not write"):
        read(data.getvalue())


def test_faults_are_all_found():
    def fill(file):
        file["good"] = [1.0]
        file["a/link"] = h5py.SoftLink("/good")
        file["b/text"] = "abc"

    found: list[errors.FileError] = []
    assert [each.path for each in read(written(fill), found=found).walk()] == ["good"]
    assert [error.part for error in found] == ["model.weights.h5: /b/text", "model.weights.h5: /a/link"]


def changed(data: bytes, at: int, form: str, value: int) -> bytes:
    copy = bytearray(data)
    struct.pack_into(f"<{form}", copy, at, value)
    return bytes(copy)


def test_trees_that_lead_in_a_circle_are_refused():
    data = written(lambda f: [f.create_group(f"g{n}") for n in range(40)])
    tree = data.index(b"TREE")
    level, first = data[tree + 5], tree + 24 + 8
    with pytest.raises(errors.FileError):
        read(changed(changed(data, tree + 5, "B", level + 1), first, "Q", tree))
    with pytest.raises(errors.FileError):
        read(changed(data, first + 16, "Q", struct.unpack_from("<Q", data, first)[0]))


def test_arrays_that_lie_on_each_other_are_refused():
    def fill(file):
        file["a"], file["b"] = np.arange(100.0), np.arange(100.0)

    data = written(fill)
    places = [h5py.File(io.BytesIO(data))[name].id.get_offset() for name in "ab"]
    at = data.index(struct.pack("<QQ", places[1], 800))
    with pytest.raises(errors.UnsafeFileError, match="lies on bytes of something else"):
        read(changed(data, at, "Q", places[0] + 8))
    with pytest.raises(errors.CorruptFileError, match="and the weights have"):
        read(changed(data, at, "Q", len(data) - 100))
    with pytest.raises(errors.CorruptFileError, match="and the weights have"):
        read(changed(data, at, "Q", 2**63))


def test_a_compressed_piece_that_is_broken_is_an_error_of_ours():
    data = bytearray(written(lambda f: f.create_dataset("a", data=np.arange(999.0), chunks=(999,), compression="gzip")))
    (dataset,) = read(bytes(data)).walk()
    (chunk,) = dataset.chunks
    data[chunk.offset + chunk.size // 2] ^= 255
    (dataset,) = read(bytes(data)).walk()
    with pytest.raises(errors.CorruptFileError, match="the compressed piece at"):
        dataset.read()


def test_reading_copies_nothing():
    data = written(lambda f: f.__setitem__("a", np.arange(1000.0)))
    view = memoryview(data)
    (dataset,) = hdf5.read(lambda o, n: view[o : o + n], len(data), DEFAULT).walk()
    address = np.frombuffer(data, "u1").__array_interface__["data"][0]
    assert dataset.read().__array_interface__["data"][0] == address + dataset.offset
