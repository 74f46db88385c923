"""The archive: read strictly, written whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import zipfile

import keras
import pytest

from kustom import errors
from kustom.saving import archive
from kustom.saving.limits import Limits


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


@pytest.fixture
def path(tmp_path, model):
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def members(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def with_sums(found):
    return [*found.items(), ("kustom.json", lambda sums: json.dumps({"sums": dict(sums)}).encode())]


def test_what_keras_writes_is_read(path, model):
    with archive.read(path) as found:
        found.verify()
        assert found.config["class_name"] == "Sequential"
        assert json.loads(found.config_bytes) == found.config
        assert found.metadata["keras_version"] == keras.__version__
        assert found.manifest is None
        assert found.assets == {}
        kernel = found.weights.get("layers/dense/vars").datasets["0"]
        assert (kernel.shape, kernel.dtype, kernel.nbytes) == ((3, 2), "float32", 24)
        assert (kernel.read() == keras.ops.convert_to_numpy(model.layers[0].kernel)).all()
        for name, data in members(path).items():
            assert found.data(name) == data
            assert found.digest(name) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("source", ["path", "text", "bytes", "file", "stream"])
def test_paths_and_file_objects_are_the_same(path, source):
    class Stream(io.BytesIO):
        def seekable(self):
            return False

    data = path.read_bytes()
    given = {"path": path, "text": str(path), "bytes": io.BytesIO(data), "stream": Stream(data)}
    with open(path, "rb") as file:
        file.seek(7)
        with archive.read(given.get(source, file)) as found:
            found.verify()
            assert found.size == len(data)


def test_what_is_judged_is_what_is_handed_on(path):
    with archive.read(path) as found:
        before = bytes(found.data("model.weights.h5"))
        path.write_bytes(bytes(path.stat().st_size))
        assert found.data("model.weights.h5") == before
        assert found.data("model.weights.h5").readonly
        found.verify()


def test_compressed_members_are_read(path, tmp_path):
    with zipfile.ZipFile(tmp_path / "small.keras", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members(path).items():
            file.writestr(name, data)
    for hold in (True, False):
        with archive.read(tmp_path / "small.keras", hold=hold) as found:
            found.verify()
            assert found.weights.nbytes == 32


def test_a_zip_that_was_written_as_a_stream_is_read(path):
    class Stream(io.BytesIO):
        def seekable(self):
            return False

        def tell(self):
            raise io.UnsupportedOperation

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in members(path).items():
            file.writestr(name, data)
    with archive.read(io.BytesIO(stream.getvalue())) as found:
        found.verify()


def test_keras_and_zipfile_read_what_is_written(path, tmp_path, model):
    found = {**members(path), "assets/wörter/vocabulary.txt": b"one\n"}
    archive.write(tmp_path / "new.keras", with_sums(found))
    with zipfile.ZipFile(tmp_path / "new.keras") as file:
        assert file.testzip() is None
        assert file.namelist() == [*found, "kustom.json"]
        assert {name: file.read(name) for name in found} == found
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    assert (keras.ops.convert_to_numpy(loaded.layers[0].kernel) == keras.ops.convert_to_numpy(model.layers[0].kernel)).all()
    with archive.read(tmp_path / "new.keras") as read:
        read.verify()
        assert read.assets == {"assets/wörter/vocabulary.txt": 4}
        assert read.manifest["sums"]["config.json"] == hashlib.sha256(found["config.json"]).hexdigest()


def test_the_same_members_give_the_same_bytes(path):
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        archive.write(file, with_sums(members(path)))
    assert files[0].getvalue() == files[1].getvalue()


def test_a_file_that_fails_half_way_leaves_the_old_one(path):
    before = path.read_bytes()

    def failing():
        yield "metadata.json", b"{}"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.write(path, failing())
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.keras"]


def test_a_file_keeps_its_permissions_and_its_link(path, tmp_path):
    path.chmod(0o640)
    link = tmp_path / "link.keras"
    link.symlink_to(path)
    archive.write(link, with_sums(members(path)))
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    archive.read(path).verify()


def test_a_file_object_is_written_where_it_stands(path):
    file = io.BytesIO()
    file.write(b"before")
    archive.write(file, members(path).items())
    assert file.getvalue().startswith(b"beforePK")
    with archive.read(io.BytesIO(file.getvalue()[6:])) as found:
        found.verify()


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5", "assets/a/b.txt"])
def test_a_flipped_bit_is_found_in_every_member(path, tmp_path, name):
    found = {**members(path), "assets/a/b.txt": b"words\n"}
    archive.write(tmp_path / "new.keras", with_sums(found))
    data = bytearray((tmp_path / "new.keras").read_bytes())
    data[data.index(found[name]) + len(found[name]) - 1] ^= 1
    with pytest.raises(errors.CorruptFileError, match=name), archive.read(io.BytesIO(data)) as read:
        read.verify()
    assert any(name in str(error) for error in archive.read(io.BytesIO(data), hold=False, faults=True).faults)


def test_the_sums_of_the_manifest_are_held(path):
    found = members(path)
    for sums in ({}, {"config.json": "0" * 64}, None, dict.fromkeys(found, "0" * 64)):
        file = io.BytesIO()
        archive.write(file, [*found.items(), ("kustom.json", json.dumps({"sums": sums}).encode())])
        with pytest.raises(errors.CorruptFileError, match=r"kustom\.json: it should have the sums|the manifest says 0000"):
            archive.read(file).verify()


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_a_missing_member_is_named(path, name):
    file = io.BytesIO()
    archive.write(file, [(each, data) for each, data in members(path).items() if each != name])
    with pytest.raises(errors.CorruptFileError, match=f"{name}: the member is missing"):
        archive.read(file)


@pytest.mark.parametrize("length", [0, 1, 30, 100, -1, -10, -100, -1000])
def test_a_file_that_was_cut_off_is_refused(path, tmp_path, length):
    (tmp_path / "cut.keras").write_bytes(path.read_bytes()[:length])
    with pytest.raises(errors.FileError, match=r"cut\.keras: "):
        archive.read(tmp_path / "cut.keras")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.com/model.keras", "this is an address"),
        ("gs://bucket/model.keras", "this is an address"),
        ("hf://user/model", "this is an address"),
        (".", "this is a folder"),
        (os.devnull, "no ordinary file"),
    ],
)
def test_what_is_no_local_file_is_refused_by_name(name, message):
    with pytest.raises(errors.FormatError, match=message):
        archive.read(name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file: a whole model in Keras's older format"),
        (b"\x80\x04\x95" + bytes(100), "this is a pickle"),
        (b"\x1f\x8b" + bytes(100), "this is a gzip file"),
        (b"", "this is an empty file"),
        (b"hello, world" * 10, "this is no zip archive"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, data, message):
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(errors.FormatError, match=message):
        archive.read(tmp_path / "other")


def test_a_file_that_is_not_there_is_pythons_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        archive.read(tmp_path / "nothing.keras")


def test_a_text_file_object_is_refused():
    with pytest.raises(errors.FormatError, match="mode 'rb'"):
        archive.read(io.StringIO("text"))


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(max_bytes=1000), "max_bytes"),
        (Limits(max_config_bytes=100), "max_config_bytes"),
        (Limits(max_members=2), "max_members"),
        (Limits(max_arrays=2), "max_arrays"),
        (Limits(max_asset_bytes=5), "max_asset_bytes"),
    ],
)
def test_a_limit_that_stops_a_file_is_named(path, limits, name):
    file = io.BytesIO()
    archive.write(file, [*members(path).items(), ("assets/a/b.txt", b"words\n")])
    archive.read(file)
    with pytest.raises(errors.LimitError, match=f"raise it: {name}="):
        archive.read(file, limits)


def test_all_faults_are_shown_where_that_is_asked(path):
    file = io.BytesIO()
    bad = {**members(path), "config.json": b"{", "metadata.json": b"[]", "extra.bin": b"x", "../up": b"y"}
    archive.write(file, bad.items())
    found = archive.read(file, hold=False, faults=True).faults
    assert [error.part for error in found] == ["extra.bin", "../up", "config.json", "metadata.json"]
