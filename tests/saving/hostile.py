"""Files as they should not be: each published fault of loading, and what newer releases still accept, in a form that is harmless.

What would be run makes an empty file, what would be imported is a module that says so, what would be read is a file with a
known line, what would be called is this machine. None of them is an attack on a Keras that has been mended.
"""

from __future__ import annotations

import base64
import io
import json
import marshal
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

MEMBERS = ("metadata.json", "config.json", "model.weights.h5")


REGISTERED = "hostile>answering"
# Settings of `compile` in which nothing but plain data stands.
COMPILED = ("loss_weights", "run_eagerly", "steps_per_execution", "jit_compile", "auto_scale_loss")


@keras.saving.register_keras_serializable("hostile")
def answering(*given: Any) -> Any:
    """What a program has registered, and no file has a use for in a place of plain data."""
    raise AssertionError(f"a file had it called with {given}")


class Workshop:
    """A folder with a good file, and what the bad ones would touch.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = folder / "marker"
        self.probe = folder / "probe.txt"
        self.probe.write_text("secret\nwords\n", encoding="utf-8")
        self.base = folder / "base.keras"
        inputs = keras.Input((3,), name="x")
        hidden = keras.layers.Dense(2, activation="relu", name="hidden")(inputs)
        keras.Model(inputs, keras.layers.Dense(1, name="out")(hidden + 1)).save(self.base)
        self.members = unpacked(self.base)

    def config(self) -> dict[str, Any]:
        """The good file's config, to be changed."""
        return json.loads(self.members["config.json"])

    def weights(self) -> h5py.File:
        """The good file's weights, to be changed; `repacked` takes them."""
        return h5py.File(io.BytesIO(self.members["model.weights.h5"]), "r+")

    def file(self, **members: bytes | None) -> Path:
        """A file with other members than the good one; None leaves one out."""
        named = {
            {"config": "config.json", "metadata": "metadata.json", "weights": "model.weights.h5"}.get(k, k): v
            for k, v in members.items()
        }
        return packed(self.folder / "bad.keras", {**self.members, **named})

    def with_config(self, config: Any) -> Path:
        """A file with another config."""
        return self.file(config=json.dumps(config).encode())

    def with_weights(self, change: Callable[[h5py.File], None]) -> Path:
        """A file with other weights."""
        data = io.BytesIO(self.members["model.weights.h5"])
        with h5py.File(data, "r+") as file:
            change(file)
        return self.file(weights=data.getvalue())

    def with_layer(self, layer: dict[str, Any]) -> Path:
        """A file whose model has a layer in the place of the hidden one."""
        config = self.config()
        place = next(i for i, each in enumerate(config["config"]["layers"]) if each["name"] == "hidden")
        old = config["config"]["layers"][place]
        config["config"]["layers"][place] = {
            "inbound_nodes": old["inbound_nodes"],
            "name": "hidden",
            "registered_name": None,
            **layer,
        }
        return self.with_config(config)

    def with_setting(self, key: str, value: Any) -> Path:
        """A file whose hidden layer has another setting."""
        config = self.config()
        next(each for each in config["config"]["layers"] if each["name"] == "hidden")["config"][key] = value
        return self.with_config(config)


def unpacked(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(path: Path, members: dict[str, bytes | None], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            if data is not None:
                file.writestr(name, data)
    return path


def part(module: str | None, name: str, config: Any, registered_name: str | None = None) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": registered_name}


def function(module: str, name: str) -> dict[str, Any]:
    return part(module, "function", name, name)


def _python(shop: Workshop) -> dict[str, Any]:
    """A function as Keras marshals it, which would make the marker."""
    code = compile(f"lambda x: open({str(shop.marker)!r}, 'w').close() or x", "<file>", "eval").co_consts[0]
    text = base64.b64encode(marshal.dumps(code)).decode()
    return {"class_name": "__lambda__", "config": {"value": [text, None, None]}}


def _lambda(shop: Workshop) -> dict[str, Any]:
    return part("keras.layers", "Lambda", {"name": "hidden", "function": _python(shop), "arguments": {}})


def yaml(shop: Workshop) -> Path:
    return shop.file(config=f"!!python/object/apply:os.mkdir\n- {shop.marker}\n".encode())


def lambda_layer(shop: Workshop) -> Path:
    return shop.with_layer(_lambda(shop))


def lambda_as_activation(shop: Workshop) -> Path:
    return shop.with_setting("activation", _python(shop))


def lambda_in_h5(shop: Workshop) -> Path:
    path = shop.folder / "bad.keras"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(shop.config())
        file.create_group("model_weights")
    return path


def legacy_h5_with_a_link(shop: Workshop) -> Path:
    path = shop.folder / "bad.h5"
    with h5py.File(path, "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(shop.probe), "/")
    return path


def any_function(shop: Workshop) -> Path:
    return shop.with_layer(
        part("os", "function", "mkdir", "mkdir") | {"inbound_nodes": [{"args": [str(shop.marker)], "kwargs": {}}]}
    )


def any_class(shop: Workshop) -> Path:
    return shop.with_layer(part("pathlib", "Path", {}))


def get_file(shop: Workshop) -> Path:
    call = {"args": [], "kwargs": {"fname": "marker", "origin": "http://127.0.0.1:9/x", "cache_dir": str(shop.folder)}}
    return shop.with_layer(part("keras.utils", "function", "get_file", "get_file") | {"inbound_nodes": [call]})


def get_file_as_activation(shop: Workshop) -> Path:
    return shop.with_setting("activation", function("keras.utils", "get_file"))


def unsafe_mode_first(shop: Workshop) -> Path:
    config = shop.config()
    switch = function("keras.config", "enable_unsafe_deserialization") | {
        "name": "a",
        "inbound_nodes": [{"args": [], "kwargs": {}}],
    }
    config["config"]["layers"] = [switch, *config["config"]["layers"], _lambda(shop) | {"name": "b", "inbound_nodes": []}]
    return shop.with_config(config)


def torch_module(shop: Workshop) -> Path:
    # A pickle that makes a folder.
    pickle = b"cos\nmkdir\n(V" + str(shop.marker).encode() + b"\ntR."
    return shop.with_layer(
        part("keras.layers", "TorchModuleWrapper", {"name": "hidden", "module": base64.b64encode(pickle).decode()})
    )


def saved_model(shop: Workshop) -> Path:
    return shop.with_layer(
        part("keras.layers", "TFSMLayer", {"name": "hidden", "filepath": str(shop.probe), "call_endpoint": "serve"})
    )


def jax_function(shop: Workshop) -> Path:
    call = function("os", "mkdir")
    return shop.with_layer(part("keras.layers", "JaxLayer", {"name": "hidden", "call_fn": call, "init_fn": None}))


def _lookup(name: str) -> Callable[[Workshop], Path]:
    def with_path(shop: Workshop) -> Path:
        return shop.with_layer(part("keras.layers", name, {"name": "hidden", "vocabulary": str(shop.probe)}))

    return with_path


def vocabulary_from_an_address(shop: Workshop) -> Path:
    return shop.with_layer(part("keras.layers", "StringLookup", {"name": "hidden", "vocabulary": "http://127.0.0.1:9/words"}))


def _hidden(file: h5py.File) -> h5py.Group:
    return file["layers/dense/vars"]


def huge_shape(shop: Workshop) -> Path:
    def change(file: h5py.File) -> None:
        del _hidden(file)["0"]
        _hidden(file).create_dataset("0", shape=(2**20, 2**14), dtype="float32", chunks=(2**10, 2**10), compression="gzip")

    return shop.with_weights(change)


def huge_shape_in_a_row(shop: Workshop) -> Path:
    def change(file: h5py.File) -> None:
        del _hidden(file)["0"]
        _hidden(file).create_dataset("0", shape=(2**20, 2**14), dtype="float32")

    return shop.with_weights(change)


def external_storage(shop: Workshop) -> Path:
    def change(file: h5py.File) -> None:
        del _hidden(file)["0"]
        _hidden(file).create_dataset("0", shape=(3,), dtype="float32", external=[(str(shop.probe), 0, 12)])

    return shop.with_weights(change)


def virtual_dataset(shop: Workshop) -> Path:
    def change(file: h5py.File) -> None:
        del _hidden(file)["0"]
        layout = h5py.VirtualLayout(shape=(3,), dtype="float32")
        layout[:] = h5py.VirtualSource(str(shop.probe), "data", shape=(3,))
        _hidden(file).create_virtual_dataset("0", layout)

    return shop.with_weights(change)


def _linked(make: Callable[[Workshop, h5py.File], Any], name: str) -> Callable[[Workshop], Path]:
    def with_link(shop: Workshop) -> Path:
        def change(file: h5py.File) -> None:
            group, _, own = name.rpartition("/")
            link = make(shop, file)
            del file[name]
            (file[group] if group else file)[own] = link

        return shop.with_weights(change)

    return with_link


def _external(shop: Workshop, file: h5py.File) -> Any:
    return h5py.ExternalLink(str(shop.probe), "/")


def _soft(shop: Workshop, file: h5py.File) -> Any:
    return h5py.SoftLink("/layers/dense_1/vars/0")


def _hard(shop: Workshop, file: h5py.File) -> Any:
    return file["layers/dense_1/vars/0"]


def zeros_in_gzip(shop: Workshop) -> Path:
    def change(file: h5py.File) -> None:
        del _hidden(file)["0"]
        zeros = np.zeros((2**12, 2**10), "float32")
        _hidden(file).create_dataset("0", data=zeros, chunks=zeros.shape, compression="gzip")

    return shop.with_weights(change)


def other_filter(shop: Workshop) -> Path:
    def change(file: h5py.File) -> None:
        del _hidden(file)["0"]
        _hidden(file).create_dataset("0", data=np.zeros((64, 64), "float32"), compression="lzf")

    return shop.with_weights(change)


def text_for_numbers(shop: Workshop) -> Path:
    def change(file: h5py.File) -> None:
        del _hidden(file)["0"]
        _hidden(file).create_dataset("0", data=np.full((3,), b"abc"))

    return shop.with_weights(change)


def numpy_weights(shop: Workshop) -> Path:
    return shop.file(**{"model.weights.h5": None, "model.weights.npz": b"PK\5\6" + bytes(18)})


def layer_name_with_dots(shop: Workshop) -> Path:
    return shop.with_setting("name", "../../marker")


def other_name_of_the_same_layer(shop: Workshop) -> Path:
    config = shop.config()
    config["config"]["layers"][0]["config"]["name"] = "../marker"
    return shop.with_config(config)


def _named(name: str) -> Callable[[Workshop], Path]:
    def with_member(shop: Workshop) -> Path:
        return shop.file(**{name: b"words"})

    return with_member


def symbolic_link(shop: Workshop) -> Path:
    path = shop.folder / "bad.keras"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in shop.members.items():
            file.writestr(name, data)
        link = zipfile.ZipInfo("assets/words.txt")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, str(shop.probe))
    return path


def _deflated(name: str, data: bytes) -> Callable[[Workshop], Path]:
    def with_bomb(shop: Workshop) -> Path:
        return packed(shop.folder / "bad.keras", {**shop.members, name: data}, zipfile.ZIP_DEFLATED)

    return with_bomb


def blanks(shop: Workshop) -> Path:
    """A gigabyte of blanks in a megabyte, whose sums and sizes are right; written without ever having them."""
    packer, crc, block = zlib.compressobj(9, zlib.DEFLATED, -15), 0, b" " * 2**20
    data = (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * 2**10 + packer.flush()
    for _ in range(2**10):
        crc = zlib.crc32(block, crc)
    path = shop.folder / "bad.keras"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("metadata.json", "model.weights.h5"):
            file.writestr(name, shop.members[name])
        info = zipfile.ZipInfo("config.json")
        info.compress_type, info.CRC, info.file_size, info.compress_size = 8, crc, 2**30, len(data)
        info.header_offset = file.fp.tell()
        file.fp.write(info.FileHeader() + data)
        file.filelist.append(info)
        file.NameToInfo[info.filename] = info
        file.start_dir = file.fp.tell()
        file._didModify = True
    return path


def tar(shop: Workshop) -> Path:
    import tarfile

    path = shop.folder / "bad.keras"
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("../marker")
        file.addfile(info, io.BytesIO())
    return path


def folder(shop: Workshop) -> Path:
    path = shop.folder / "bad.keras"
    path.mkdir()
    for name, data in shop.members.items():
        (path / name).write_bytes(data)
    (path / "assets").mkdir()
    (path / "assets" / "words.txt").symlink_to(shop.probe)
    return path


def member_twice(shop: Workshop) -> Path:
    path = shop.file()
    bad = shop.config()
    bad["config"]["layers"][1] = _lambda(shop) | {"inbound_nodes": [], "name": "hidden"}
    with zipfile.ZipFile(path, "a") as file:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            file.writestr("config.json", json.dumps(bad))
    return path


def member_twice_by_case(shop: Workshop) -> Path:
    return shop.file(**{"assets/words.txt": b"a", "assets/Words.txt": b"b"})


def key_twice(shop: Workshop) -> Path:
    text = shop.members["config.json"].decode()
    return shop.file(config=text.replace('"class_name": "Dense"', '"class_name": "Dense", "class_name": "Lambda"', 1).encode())


def not_a_number(shop: Workshop) -> Path:
    return shop.file(config=shop.members["config.json"].replace(b'"units": 2', b'"units": NaN'))


def bytes_before(shop: Workshop) -> Path:
    path = shop.folder / "bad.keras"
    path.write_bytes(b"#!/bin/sh\n" + shop.base.read_bytes())
    return path


def bytes_behind(shop: Workshop) -> Path:
    path = shop.folder / "bad.keras"
    path.write_bytes(shop.base.read_bytes() + b"more")
    return path


def bytes_between(shop: Workshop) -> Path:
    path = shop.file()
    data = path.read_bytes()
    at = data.index(b"PK\1\2")
    start = struct.unpack_from("<I", data, len(data) - 6)[0]
    path.write_bytes(data[:at] + b"hidden" + data[at:-6] + struct.pack("<IH", start + 6, 0))
    return path


def comment(shop: Workshop) -> Path:
    path = shop.file()
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"PK\5\6" + bytes(18)
    return path


def other_head(shop: Workshop) -> Path:
    path = shop.file()
    path.write_bytes(path.read_bytes().replace(b"metadata.json", b"metadatb.json", 1))
    return path


def encrypted(shop: Workshop) -> Path:
    path = shop.file()
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    path.write_bytes(data)
    return path


def other_registered_name(shop: Workshop) -> Path:
    config = shop.config()
    layer = next(each for each in config["config"]["layers"] if each["name"] == "hidden")
    layer["registered_name"] = "hostile>Marking"
    return shop.with_config(config)


def package_in_the_current_folder(shop: Workshop) -> Path:
    (shop.folder / "keras_cv.py").write_text(f"open({str(shop.marker)!r}, 'w').close()\n", encoding="utf-8")
    return shop.with_layer(part("keras_cv", "Layer", {"name": "hidden"}, "keras_cv>Layer"))


def dtype_of_a_gigabyte(shop: Workshop) -> Path:
    array = {"class_name": "__numpy__", "config": {"value": [""], "dtype": "S1000000000"}}
    return shop.with_layer(part("keras.layers", "Rescaling", {"name": "hidden", "scale": array}))


def text_of_a_gigabyte(shop: Workshop) -> Path:
    array = {"class_name": "__numpy__", "config": {"value": [""], "dtype": "<U250000"}}
    return shop.with_layer(
        part(
            "keras.layers",
            "Rescaling",
            {"name": "hidden", "scale": {**array, "config": {"value": [""] * 1000, "dtype": "<U250000"}}},
        )
    )


def many_units(shop: Workshop) -> Path:
    return shop.with_setting("units", 2**27)


def more_units_than_any(shop: Workshop) -> Path:
    return shop.with_setting("units", 10**12)


def large_input(shop: Workshop) -> Path:
    config = shop.config()
    config["config"]["layers"][0]["config"]["batch_shape"] = [None, 2**20, 2**20]
    return shop.with_config(config)


def large_metric(shop: Workshop) -> Path:
    config = shop.config()
    metric = part("keras.metrics", "MeanIoU", {"num_classes": 10**6})
    config["compile_config"] = {"optimizer": "adam", "loss": "mse", "metrics": [metric]}
    return shop.with_config(config)


def reverse_order(shop: Workshop) -> Path:
    config = shop.config()
    layers = config["config"]["layers"]
    template = next(each for each in layers if each["name"] == "hidden")
    chain, before = [layers[0]], "x"
    for number in range(700):
        layer = json.loads(json.dumps(template))
        layer["name"] = layer["config"]["name"] = f"d{number}"
        layer["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = before
        before = layer["name"]
        chain.append(layer)
    config["config"]["layers"] = chain[::-1]
    config["config"]["output_layers"] = [before, 0, 0]
    return shop.with_config(config)


def node_with_a_function(shop: Workshop) -> Path:
    config = shop.config()
    layer = next(each for each in config["config"]["layers"] if each["name"] == "hidden")
    layer["inbound_nodes"][0]["kwargs"] = {"mask": function("keras.utils", "get_file")}
    return shop.with_config(config)


def _registered_text(key: str, value: Any) -> Callable[[Workshop], Path]:
    def with_text(shop: Workshop) -> Path:
        """Keras takes text for a name wherever it goes through plain data, and puts there what has that name."""
        config = shop.config()
        if key in ("args", "kwargs"):
            layer = next(each for each in config["config"]["layers"] if each["name"] == "hidden")
            call = layer["inbound_nodes"][0]
            call[key] = [*call["args"], value] if key == "args" else {"training": value}
        else:
            config["compile_config"] = {"optimizer": "sgd", "loss": "mse", key: value}
        return shop.with_config(config)

    return with_text


def registered_text_for_a_constant(shop: Workshop) -> Path:
    return shop.with_setting("bias_initializer", part("keras.initializers", "Constant", {"value": REGISTERED}))


def registered_text_for_a_scale(shop: Workshop) -> Path:
    return shop.with_layer(part("keras.layers", "Rescaling", {"name": "hidden", "scale": REGISTERED, "offset": 0.0}))


def registered_text_for_a_metric(shop: Workshop) -> Path:
    config = shop.config()
    metric = part("keras.metrics", "MeanMetricWrapper", {"fn": "mse", "name": REGISTERED})
    config["compile_config"] = {"optimizer": "sgd", "loss": "mse", "metrics": [metric]}
    return shop.with_config(config)


def class_for_an_activation(shop: Workshop) -> Path:
    return shop.with_setting("activation", part("keras.utils", "PyDataset", {}))


def class_for_an_initializer(shop: Workshop) -> Path:
    return shop.with_setting("kernel_initializer", part("keras.callbacks", "CSVLogger", {"filename": str(shop.marker)}))


def model_for_a_loss(shop: Workshop) -> Path:
    config = shop.config()
    config["compile_config"] = {"optimizer": "adam", "loss": part("keras.layers", "Dense", {"units": 2})}
    return shop.with_config(config)


def shared_with_another(shop: Workshop) -> Path:
    config = shop.config()
    config["config"]["layers"][1]["shared_object_id"] = 7
    layer = next(each for each in config["config"]["layers"] if each["name"] == "out")
    layer["config"]["kernel_initializer"] |= {"shared_object_id": 7}
    return shop.with_config(config)


def mapping_operation(shop: Workshop) -> Path:
    return shop.with_layer(part("keras.src.ops.core", "Map", {"name": "hidden"}, "Map"))


def deep(shop: Workshop) -> Path:
    return shop.file(metadata=b"[" * 100_000 + b"]" * 100_000)


def many_digits(shop: Workshop) -> Path:
    return shop.file(config=shop.members["config.json"].replace(b'"units": 2', b'"units": ' + b"9" * 5000))


PUBLISHED: dict[str, list[Callable[[Workshop], Path]]] = {
    "CVE-2021-37678": [yaml],
    "CVE-2024-3660": [lambda_layer, lambda_as_activation],
    "CVE-2025-1550": [any_function, any_class],
    "CVE-2025-8747": [get_file, get_file_as_activation],
    "CVE-2025-9906": [unsafe_mode_first],
    "CVE-2025-9905": [lambda_in_h5],
    "CVE-2025-49655": [torch_module],
    "CVE-2025-12058": [*map(_lookup, ("StringLookup", "IntegerLookup", "TextVectorization")), vocabulary_from_an_address],
    "CVE-2024-55459, 2025-12060, 2025-12638": [tar],
    "CVE-2026-0897": [huge_shape, huge_shape_in_a_row],
    "CVE-2026-1669": [
        external_storage,
        virtual_dataset,
        _linked(_external, "layers/dense/vars/0"),
        _linked(_soft, "layers/dense/vars/0"),
    ],
    "CVE-2026-1462": [saved_model],
    "GHSA-27f4-p4xq-cxg8": [legacy_h5_with_a_link],
    "CVE-2026-12479": [layer_name_with_dots, other_name_of_the_same_layer],
    "CVE-2026-12481": [lambda_layer],
    "GHSA-hqp4-2352-xf5r": [_named("../marker"), _named("assets/../../marker"), _named("/marker"), _named("assets/..\\marker")],
    "no number": [
        zeros_in_gzip,
        other_filter,
        _deflated("assets/words.txt", bytes(2**22)),
        _deflated("model.weights.h5", bytes(2**22)),
        numpy_weights,
        _linked(_hard, "layers/dense/vars/0"),
        _linked(_external, "layers/dense"),
        _linked(_soft, "layers"),
        symbolic_link,
        folder,
    ],
    "functions of a file": [jax_function, mapping_operation],
}

ACCEPTED: dict[str, list[Callable[[Workshop], Path]]] = {
    "duplicate members": [member_twice, member_twice_by_case],
    "duplicate keys": [key_twice],
    "NaN": [not_a_number],
    "bytes of nobody": [bytes_before, bytes_behind, bytes_between, comment, other_head, encrypted],
    "members nobody expects": [
        _named("run.sh"), _named("config.json.bak"), _named("assets"), _named("assets/layers/dense/words.txt"),
    ],
    "another registered name": [other_registered_name],
    "a package in the current folder": [package_in_the_current_folder],
    "blanks": [blanks],
    "dtypes of a gigabyte": [dtype_of_a_gigabyte, text_of_a_gigabyte, text_for_numbers],
    "gigabytes from kilobytes": [many_units, more_units_than_any, large_input, large_metric],
    "an order that takes minutes": [reverse_order],
    "any public symbol": [
        node_with_a_function, class_for_an_activation, class_for_an_initializer, model_for_a_loss, shared_with_another,
    ],
    "text that names what is registered": [
        *(_registered_text(key, value) for key in ("args", "kwargs", *COMPILED) for value in (REGISTERED, {"a": [0, REGISTERED]})),
        *(_registered_text(key, value) for key in ("loss", "optimizer", "metrics") for value in ("hostile>Nothing", ["os.mkdir"])),
        _registered_text("optimizer", REGISTERED),
        registered_text_for_a_constant, registered_text_for_a_scale, registered_text_for_a_metric,
    ],
    "depth and digits": [deep, many_digits],
}  # fmt: skip

FILES = [
    (f"{group}: {make.__qualname__.split('.')[0].strip('_')} {number}", make)
    for group, makers in {**PUBLISHED, **ACCEPTED}.items()
    for number, make in enumerate(makers)
]
