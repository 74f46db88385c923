"""`kustom.save`: a `.keras` archive with a manifest, whole or not at all, of what can be loaded again.

The config is serialized once, as Keras does it, and everything that is known of its objects is known from there. The
weights are laid out by Keras's own code, and go to the disk one by one, hashed on a thread while they are written.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import re
import tempfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import keras

from kustom import errors
from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import KustomError, RecordingWarning, UnsavableError, hide_frames, refuse_tf_keras
from kustom.saving import archive, arrays, manifest, process, recording, refusing
from kustom.saving.rebuilding import definition_of, is_object, nodes, public, retype, said, types_of
from kustom.saving.verdict import judge

__all__ = ["save"]


@hide_frames
def save(model: keras.Model, path: str | os.PathLike[str] | IO[bytes], example: Any = None) -> None:
    """Save a model to a `.keras` file that `kustom.load`, and `keras.saving.load_model`, read.

    The file is written beside `path`, flushed, and renamed: after a crash at any moment there is the old file or the new one,
    whole. It holds a manifest of its custom parts, and what the model gives for a small input. A model that could not be
    loaded again as it is, is refused, and nothing is written.

    Args:
        model: A built model, compiled or not. It is not changed.
        path: Where to, a path that ends in `.keras` or a binary file object.
        example: What `model` takes in a call, a few rows of it, such as `x[:2]`; the first four are recorded. Where it is
            None, an input is made up: ids for an `Embedding`, words for a lookup, numbers between -1 and 1 else.

    Raises:
        UnsavableError: A part of the model could not be loaded again; the message says which and why.
        UnsavableSettingError: Likewise, a setting that no config can hold.
        ClosureError: A part takes a value from the function around it.
        RecordingError: The model refuses the example, or one row of it is larger than a file keeps.

    Warns:
        RecordingWarning: No output could be recorded, since nothing tells what the model takes.

    Example:
        >>> import io, keras, kustom
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> file = io.BytesIO()                          # or a path: "model.keras"
        >>> kustom.save(model, file)
        >>> kustom.load(file).count_params()
        5
    """
    refuse_tf_keras(model)
    if not isinstance(model, keras.Model):
        raise UnsavableError(f"kustom.save takes a keras.Model, not a {type(model).__module__}.{type(model).__qualname__}.")
    target = _target(path)
    private.synchronize(model)
    with process.kept(names=True):
        prepared = _Prepared(model, example)
    archive.write(target, _members(model, prepared))


def _target(path: Any) -> Any:
    # Not every file object says that it is one: a temporary file's is a wrapper.
    if not isinstance(path, str | bytes | os.PathLike):
        if not callable(getattr(path, "write", None)):
            raise UnsavableError(f"a model is saved to a path or to a binary file object, not to a {type(path).__qualname__}.")
        if isinstance(path, io.TextIOBase):
            raise UnsavableError("a model's file holds bytes, and this file takes text; open it with mode 'wb'.")
        return path
    text = os.fsdecode(path)
    if "://" in text:
        raise UnsavableError(f"{text} is a remote address; save to a path, and copy the file there.")
    if not text.endswith(".keras"):
        raise UnsavableError(f"a model's file ends in .keras, and this path does not: {text}")
    return text


class _Prepared:
    """Everything about a model's file but its weights; made, and refused, before a byte is written."""

    def __init__(self, model: Any, example: Any) -> None:
        tree, self.originals = _numbered(*_serialized(model))
        customs = [self.originals[number] for number in self._customs(tree)]
        refusing.refuse_code(tree, customs)
        text = _json(tree)
        self.types = types_of(tree, self._owner_of)
        self.parts = manifest.describe(tree, self.originals, refusing.is_custom)
        again = retype(json.loads(text), self.types)
        self.config = _json(_pruned(tree, self.originals))
        self._refuse_what_no_load_takes(customs)
        entries, reached, has_assets = _walked(model)
        refusing.refuse_untracked(model, entries, reached)
        self.entry, self.why = recording.input_of(model, example)
        self.outputs, self.losses = recording.record_outputs(model, self.entry) if self.entry is not None else (None, None)
        shape = tuple(self.outputs[0]["shape"]) if self.outputs else ()
        measures = {number: obj for number, obj in self.originals.items() if isinstance(obj, _MEASURES)}
        measures |= {number: self.originals[number] for number in self._functions_that_measure(tree)}
        measured = {number: recording.values(obj, shape) for number, obj in measures.items()}
        self.measured = {number: values for number, values in measured.items() if values}
        self.places = {node.get("shared_object_id"): place for place, node in nodes(tree)}
        self.tolerance = recording.tolerance(model, alike=True)
        twin = refusing.rebuilt_twin(again, self.originals)
        refusing.refuse_other_parts(twin, self.originals, {node.get("shared_object_id", -1): node for _, node in nodes(tree)})
        with _assets_of(model, has_assets) as (store, self.assets):
            counterparts = refusing.refuse_other_model(twin, entries, store, self.entry, self.outputs, self.losses)
        self.paths = _paths(model, twin.model, counterparts)
        refusing.refuse_other_sublayers(model, twin.model, self.originals.values())
        refusing.refuse_other_weights(model, twin.model, counterparts)
        refusing.refuse_measures(twin, self.originals, self.measured, shape)
        if self.outputs is None and model.built:
            errors.warn(
                f"no output of the model was recorded: {self.why}. Give one batch of what it takes: example=.", RecordingWarning
            )

    def _refuse_what_no_load_takes(self, customs: list[Any]) -> None:
        """Refuse what would be refused when the file is read; what is registered nowhere can be given there by hand."""
        registered = private.registry()
        named: dict[str, Any] = {}
        for part in customs:
            definition = definition_of(part)
            name = keras.saving.get_registered_name(definition)
            if named.setdefault(name, definition) is not definition and name not in registered:
                raise UnsavableError(
                    f"{refusing.name_of(definition)} and {refusing.name_of(named[name])} are registered nowhere, so that both are "
                    f"{name!r} in a file. Decorate them with kustom, which tells modules apart, or give one another name."
                )
        given = {name: definition for name, definition in named.items() if name not in registered}
        for anomaly in judge(json.loads(self.config), trust=given, registered=registered).anomalies:
            raise UnsavableError(f"the file would be refused when it is loaded: {anomaly}")

    def _customs(self, tree: Any) -> list[int]:
        found = {node.get("shared_object_id", -1): node for _, node in nodes(tree)}
        return [number for number, obj in self.originals.items() if number in found and refusing.is_custom(found[number], obj)]

    def _functions_that_measure(self, tree: Any) -> list[int]:
        """The functions of somebody's own that are a loss or a metric: what else they read, only their values tell."""
        found = [node.get("shared_object_id", -1) for place, node in nodes(tree) if _COMPILED.search(place)]
        customs = {*self._customs(tree)}
        return [number for number in found if number in customs and isinstance(self.originals[number], types.FunctionType)]

    def _owner_of(self, node: dict[str, Any]) -> str:
        original = self.originals.get(node.get("shared_object_id", -1))
        if original is None or not refusing.is_custom(node, original):
            return ""
        reader = getattr(definition_of(original), "from_config", None)
        return "raw" if private.is_of_keras(getattr(reader, "__func__", reader)) else "custom"


def _serialized(model: Any) -> tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]:
    with warnings.catch_warnings():
        # Of a lambda, which is refused below.
        warnings.filterwarnings("ignore", message="The object being serialized includes a `lambda`")
        try:
            return private.serialized(model)
        except KustomError:
            raise
        except Exception as error:
            # Each part says here what its settings are; whatever one raises, it has not said it.
            name = _without_config(model)
            raise UnsavableError(
                f"{name or 'a part'} has no config: {type(error).__name__}: {said(error)[:300]} Have its get_config() give "
                "numbers, text, lists and dicts of them, or decorate its class with @kustom.part."
            ) from error


def _without_config(model: Any) -> str | None:
    """The innermost layer, or what the model is compiled with, of which no config can be made, as a message names it."""
    for part in [*reversed(private.layers_of(model)), *private.attributes_of(model).values()]:
        if not isinstance(part, keras.Variable | keras.Sequential):
            try:
                keras.saving.serialize_keras_object(part)
            except Exception:
                # As above: what one of them raises says that it is the one.
                return refusing.name_of(part)
    return None


def _numbered(tree: dict[str, Any], noted: list[tuple[Any, dict[str, Any]]]) -> tuple[dict[str, Any], dict[int, Any]]:
    """The config with its objects numbered in their order, and the objects by their numbers."""
    by_id = {id(obj): obj for obj, _ in noted}
    numbers: dict[int, int] = {}
    for _, node in nodes(tree):
        if "shared_object_id" in node:
            numbers.setdefault(node["shared_object_id"], len(numbers) + 1)
    return _renumbered(tree, numbers), {number: by_id[key] for key, number in numbers.items() if key in by_id}


def _renumbered(value: Any, numbers: dict[int, int]) -> Any:
    if isinstance(value, dict):
        copy = public({key: _renumbered(item, numbers) for key, item in value.items()})
        if is_object(value) and "shared_object_id" in value:
            copy["shared_object_id"] = numbers[value["shared_object_id"]]
        return copy
    return type(value)(_renumbered(item, numbers) for item in value) if type(value) in (list, tuple) else value


def _pruned(tree: dict[str, Any], originals: dict[int, Any]) -> dict[str, Any]:
    """The config as it is written: numbered is what stands in it more than once, and is more than its settings."""
    seen: dict[int, int] = {}
    for _, node in nodes(tree):
        number = node.get("shared_object_id")
        if number is not None:
            seen[number] = seen.get(number, 0) + 1
    kept = {number for number, count in seen.items() if count > 1 and _has_identity(originals.get(number))}

    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            drop = is_object(value) and value.get("shared_object_id") not in kept
            return {key: copy(item) for key, item in value.items() if not (drop and key == "shared_object_id")}
        return [copy(item) for item in value] if isinstance(value, list | tuple) else value

    return copy(tree)


def _has_identity(obj: Any) -> bool:
    if isinstance(obj, types.FunctionType):
        return False
    kinds = (keras.Operation, keras.losses.Loss, keras.metrics.Metric, keras.optimizers.Optimizer)
    return isinstance(obj, kinds) or not private.is_of_library(obj)


def _paths(model: Any, again: Any, counterparts: dict[int, Any]) -> list[str]:
    """The paths of a model's weights, in the order in which they come back; none where they come back themselves."""
    before = model.weights if len(model.weights) == len(again.weights) else again.weights
    # What its layer hands over as something else, such as a sum, has its own place.
    paths = [counterparts.get(id(weight), same).path for weight, same in zip(again.weights, before, strict=True)]
    return paths if paths != [weight.path for weight in again.weights] else []


def _json(tree: Any) -> str:
    try:
        text = json.dumps(tree, allow_nan=False)
        if r"\ud" in text:
            # Half of a surrogate pair is no text that a file could hold.
            json.dumps(tree, ensure_ascii=False).encode()
        return text
    except (TypeError, ValueError) as error:
        broken = [(place, node) for place, node in nodes(tree) if not _is_json(node["config"])]
        where = f"{broken[-1][0]} ({broken[-1][1]['class_name']}): " if broken else ""
        raise UnsavableError(f"{where}a setting is no JSON: {error}. Give numbers, text, lists and dicts of them.") from error


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        return False
    return True


_MEASURES = (keras.losses.Loss, keras.metrics.Metric)
_COMPILED = re.compile("/compile_config/(loss|metrics|weighted_metrics)(/[^/]*)*$")


def _walked(model: Any) -> tuple[dict[str, dict[str, Any]], set[int], bool]:
    """What Keras saves of the layers of a model, under which path; the ids of the objects it came to; whether there are assets."""
    store = private.Written()
    try:
        reached = private.save_state(model, store, skip=private.own_optimizers(model))
    except Exception as error:
        # Each layer hands its weights over here, Keras's own with what their build() made.
        raise UnsavableError(f"a layer does not hand its weights over: {type(error).__name__}: {said(error)[:300]}") from error
    entries = {path: values for path, values in store.entries.items() if values and manifest.is_of_layers(path)}
    return entries, reached, any(hasattr(layer, "save_assets") for layer in private.layers_of(model))


@contextlib.contextmanager
def _assets_of(model: Any, has_assets: bool) -> Iterator[tuple[Any, dict[str, bytes]]]:
    """The store of a model's assets, to be loaded from, and their bytes by their names in the archive."""
    if not has_assets:
        yield None, {}
        return
    with tempfile.TemporaryDirectory() as folder:
        store = private.assets_in(folder)
        private.save_state(model, private.Written(), store)
        files = sorted(each for each in Path(folder).rglob("*") if each.is_file())
        yield store, {f"assets/{each.relative_to(folder).as_posix()}": each.read_bytes() for each in files}


def _members(model: Any, prepared: _Prepared) -> Iterator[tuple[str, Any]]:
    metadata = {"keras_version": keras.__version__, "date_saved": datetime.datetime.now().strftime("%Y-%m-%d@%H:%M:%S")}
    yield archive.METADATA, json.dumps(metadata).encode()
    yield archive.CONFIG, prepared.config.encode()
    yield archive.WEIGHTS, private.outline_of(model)
    yield from prepared.assets.items()
    yield archive.MANIFEST, lambda sums: manifest.text_of(_manifest(prepared, dict(sums)))


def _manifest(prepared: _Prepared, sums: dict[str, str]) -> dict[str, Any]:
    recorded: dict[str, Any] = {"tolerance": prepared.tolerance, "device": current().device_kind()}
    if prepared.outputs is None:
        recorded["nothing_since"] = prepared.why
    else:
        recorded |= {"input": prepared.entry, "outputs": prepared.outputs}
        recorded |= {} if prepared.losses is None else {"losses": prepared.losses}
    values = [
        {"place": prepared.places[number], "probe": probe, "values": arrays.encoded(recording.as_array(numbers))}
        for number, found in prepared.measured.items()
        for probe, numbers in found.items()
    ]
    return {
        "format": manifest.FORMAT,
        "versions": manifest.versions(),
        "sums": sums,
        "parts": prepared.parts,
        "types": prepared.types,
        "paths": prepared.paths,
        "recorded": {**recorded, "measures": values},
    }
