"""What could not be loaded again is refused before anything is written, with the part and the reason.

The strongest check is to load: the model is rebuilt from the very text that is about to be written, in memory and without
weights of its own, and held against the original. Each object of the one is compared with its counterpart in the other:
its class, its settings, its weights; the rebuilt model then computes the recorded output with the weights of the original,
which are not copied. It costs a model's construction without its initializers, and one more call on a small input.
"""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.defining import naming
from kustom.errors import UnsavableError
from kustom.saving import recording, table
from kustom.saving.differing import alike, is_stand_in, settings_of, settings_of_sublayer, sublayers_of
from kustom.saving.rebuilding import Rebuilt, definition_of, last_said, nodes, rebuild, without_values, written_of

__all__ = [
    "is_custom",
    "name_of",
    "rebuilt_twin",
    "refuse_code",
    "refuse_measures",
    "refuse_other_model",
    "refuse_other_parts",
    "refuse_other_sublayers",
    "refuse_other_weights",
    "refuse_untracked",
]


def is_custom(config: dict[str, Any], original: Any = None) -> bool:
    """Whether the config of an object is that of a part which is not Keras's own.

    Args:
        config: The config.
        original: The object, where it is known: a function of Keras's, and one that is registered nowhere, have bare names.
    """
    if config["class_name"] == "function":
        return ">" in str(config["config"]) or (isinstance(original, types.FunctionType) and not private.is_of_keras(original))
    module = config.get("module")
    return not (str(config["class_name"]).startswith("__") or table.is_of_keras(module) or module == "builtins")


def name_of(obj: Any) -> str:
    """A part as a message names it."""
    if isinstance(obj, type | types.FunctionType):
        return f"{obj.__module__}.{obj.__qualname__}"
    cls = type(obj)
    name = getattr(obj, "name", None)
    called = f" {name!r}" if isinstance(name, str) else ""
    return f"{cls.__module__}.{cls.__qualname__}{called}"


def refuse_code(config: Any, customs: list[Any]) -> None:
    """Refuse what is code and no setting: a lambda, a value that a part takes from the function around it.

    Args:
        config: The config of a model.
        customs: The parts in it that are not Keras's own.

    Raises:
        ClosureError: A part takes a value from the function around it.
        UnsavableError: A lambda, or a part that no program could find again.
    """
    for place, node in nodes(config):
        if node["class_name"] == "__lambda__" or (node["class_name"] == "Lambda" and str(node.get("module")).startswith("keras")):
            raise UnsavableError(
                f"{place}: it is a lambda, or a layer around one, whose code no file can hold safely. Write a function with a "
                "name and decorate it: @kustom.layer, @kustom.activation."
            )
    for part in customs:
        definition = definition_of(part)
        naming.refuse_closure(written_of(definition))
        if "<locals>" in definition.__qualname__ and private.registered(keras.saving.get_registered_name(definition)) is None:
            raise UnsavableError(
                f"{name_of(part)} is defined inside a function and registered nowhere, so that no program could find it again. "
                "Decorate it with kustom, or define it in a module."
            )


def rebuilt_twin(config: dict[str, Any], originals: dict[int, Any]) -> Rebuilt:
    """The model of a config as a program would make it that has the same parts registered, without weights.

    Args:
        config: The config as it will be read, each object in it with a `shared_object_id`.
        originals: The objects that were serialized, by that id.

    Raises:
        UnsavableError: It cannot be made, or not whole.
    """
    last = ""

    def find(node: dict[str, Any], name: str) -> Any:
        nonlocal last
        original = originals.get(node.get("shared_object_id", -1))
        if original is None or not is_custom(node, original):
            return None
        definition = definition_of(original)
        last = f", at {name_of(original)}"
        registered = private.registered(name if isinstance(original, types.FunctionType) else node["registered_name"] or name)
        return definition if registered is None else registered

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            twin = rebuild(config, find)
            for _, compiled in twin.compiles:
                twin.objects.update(private.deserialized(compiled, find)[1])
        except Exception as error:
            # Constructors of anybody's run here: whatever they raise, they would raise when the file is loaded.
            raise UnsavableError(f"the model could not be made again from its config{last}: {_last_line(error)}") from error
    for warning in warned:
        if "cannot be built automatically" in str(warning.message):
            raise UnsavableError(" ".join(str(warning.message).split()))
    return twin


def _last_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {last_said(error, 400)}"


def refuse_other_parts(twin: Rebuilt, originals: dict[int, Any], configs: dict[int, dict[str, Any]]) -> None:
    """Refuse a part that comes back as one of another class, or with another setting.

    Args:
        twin: The rebuilt model.
        originals: The objects that were serialized, by their ids.
        configs: Their configs.

    Raises:
        UnsavableError: One does.
    """
    for number, original in originals.items():
        again = twin.objects.get(number)
        if isinstance(original, types.FunctionType):
            again = private.registered(keras.saving.get_registered_name(original))
        if again is None:
            continue
        cls, other = definition_of(original), definition_of(again)
        if other is not cls and not is_stand_in(other, cls):
            raise UnsavableError(
                f"{name_of(original)} is registered as {keras.saving.get_registered_name(cls)!r}, and under that name "
                f"there is now {_another(other, cls)}, as which it would come back. Give one of them another name or package."
            )
        if original is cls or private.is_of_keras(cls):
            continue
        for setting, before, after in settings_of(original, again, configs[number]):
            raise UnsavableError(
                f"{name_of(original)}: its setting {setting!r} is {_shown(before)} and would come back as {_shown(after)}. "
                "It was changed after the part was made, or get_config() does not tell it. Decorate the class with "
                "@kustom.part, or have get_config() return what it is now."
            )


def refuse_other_sublayers(model: Any, again: Any, told: Iterable[Any]) -> None:
    """Refuse a part whose constructor, given its config, would make other layers than it has.

    Args:
        model: The model.
        again: The rebuilt model.
        told: The parts that the model's config tells of, which are compared as such.

    Raises:
        UnsavableError: It would.
    """
    known = set(map(id, told))
    for layer, other in sublayers_of(model, again):
        if id(layer) in known:
            continue
        if type(layer) is not type(other) and not is_stand_in(type(other), type(layer)):
            raise UnsavableError(
                f"{_within(model, layer, known)} would be one of {type(other).__module__}.{type(other).__qualname__}. "
                "It was replaced after its owner was made: have the owner's get_config() tell which it is."
            )
        for setting, before, after in settings_of_sublayer(layer, other):
            raise UnsavableError(
                f"{_within(model, layer, known)} has the setting {setting!r} as {_shown(before)} and would have it as "
                f"{_shown(after)}. It was changed after its owner was made, or the owner's get_config() does not tell what it was "
                "made of. Decorate the owner's class with @kustom.part, or have its get_config() return what it is now."
            )


def _another(other: Any, original: Any) -> str:
    return f"another {name_of(other)}" if name_of(other) == name_of(original) else name_of(other)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 120 else text[:117] + "..."


def refuse_untracked(model: Any, entries: dict[str, dict[str, Any]], reached: set[int]) -> None:
    """Refuse weights that are saved and not trained, or trained and not saved.

    Args:
        model: The model.
        entries: What was saved under each path.
        reached: The ids of the objects that were saved.

    Raises:
        UnsavableError: There are some.
    """
    known = {id(variable) for variable in [*model.variables, *private.variables_of_metrics(model)]}
    for path, entry in entries.items():
        lost = [value for value in entry.values() if isinstance(value, keras.Variable) and id(value) not in known]
        if lost:
            raise UnsavableError(
                f"{path}: its weights ({', '.join(value.path for value in lost[:3])}) are not among the model's, so that they were "
                "never trained. Keras did not see the layer when it was put there: complete a list before it becomes an attribute."
            )
    for layer in private.layers_of(model):
        if id(layer) in reached or _is_inner(model, layer):
            continue
        if any(not any(v is other for sub in private.sublayers(layer) for other in sub.weights) for v in layer.weights):
            raise UnsavableError(
                f"{name_of(layer)}: its weights would not be saved, since no attribute leads to it. Keep it in an attribute of "
                "the layer that uses it, or in a list or dict there."
            )


def _is_inner(model: Any, layer: Any) -> bool:
    """Whether a layer is the functional model that a `Sequential` keeps."""
    return any(private.functional_of(each) is layer for each in private.layers_of(model) if isinstance(each, keras.Model))


def _within(model: Any, layer: Any, known: set[int]) -> str:
    """A layer as a message names it, behind the innermost part around it that a config tells of."""
    holders = [each for each in private.holders_of(model, layer) if id(each) in known]
    return f"{name_of(holders[-1])}, whose part {name_of(layer)}" if holders else name_of(layer)


def refuse_other_weights(model: Any, again: Any, counterparts: dict[int, keras.Variable]) -> None:
    """Refuse a model whose weights come back in another dtype, trained where they were frozen, or under other rules.

    Args:
        model: The model.
        again: The rebuilt model.
        counterparts: The weights of the model, by the ids of those of the rebuilt one.

    Raises:
        UnsavableError: A weight itself was frozen, or its layer thawed in part; or its layer's config does not tell the dtype,
            the constraint or the regularizer of it.
    """
    trained, others = ({id(weight) for weight in each.trainable_weights} for each in (model, again))
    for other in again.weights:
        weight = counterparts.get(id(other))
        if weight is None:
            # Its layer hands something else over than the variable itself.
            continue
        before, after = id(weight) in trained, id(other) in others
        if before != after:
            raise UnsavableError(
                f"{weight.path}: it is {'trained' if before else 'frozen'} and would come back {'trained' if after else 'frozen'}; "
                "no config tells it of a weight. Set `trainable` of the layer that has it, or in the layer's build()."
            )
        for what in ("dtype", "constraint", "regularizer"):
            before, after = getattr(weight, what), getattr(other, what)
            if not alike(before, after):
                raise UnsavableError(
                    f"{weight.path}: its {what} is {_shown(before)} and would come back as {_shown(after)}. Give it to "
                    "the layer when it is made, and have the layer's get_config() tell it."
                )


def refuse_other_model(
    twin: Rebuilt, entries: dict[str, dict[str, Any]], assets: Any, entry: Any, recorded: Any, losses: float | None
) -> dict[int, keras.Variable]:
    """Refuse a model whose weights do not all come back, or that computes something else with them.

    Returns:
        From the id of each weight of the twin the original's that it had its value of: the order of both need not be one.

    Args:
        twin: The rebuilt model.
        entries: What was saved of the original under each path.
        assets: The store of its assets, or None.
        entry: The recorded input, or None.
        recorded: The recorded output.
        losses: The recorded sum of its losses.

    Raises:
        UnsavableError: It does not come back as it is.
    """
    stored = {path: {key: _stored(value, f"{path}/{key}") for key, value in values.items()} for path, values in entries.items()}
    store = private.Reading(stored)
    with without_values():
        _, failed = private.load_state(twin.model, store, assets, map(id, private.own_optimizers(twin.model)))
        if failed:
            part, error = failed[0]
            raise UnsavableError(f"{name_of(part)}: its weights would not come back: {_last_line(error)}")
        untaken = store.untaken()
        if untaken:
            raise UnsavableError(
                f"{untaken[0]}: its weights would be saved and not come back, since a loaded model has no such part then, or one "
                "that is only made by the first call. Build in build() every sublayer, and make it in __init__."
            )
        fresh = [variable for variable in twin.model.weights if not private.has_value(variable)]
        if fresh:
            raise UnsavableError(f"{fresh[0].path}: it would come back with a fresh value, since no value of it is saved.")
        if entry is None:
            return _counterparts(entries, stored)
        x = recording.inputs_from(entry)
        try:
            given, again = recording.outputs(twin.model, x, contextlib.nullcontext)
        except Exception as error:
            # The original takes this input; whatever a `call` of anybody's raises, it would raise after loading.
            raise UnsavableError(f"the model would load and then refuse its input: {_last_line(error)}") from error
        made_late = [variable for variable in twin.model.weights if not private.has_value(variable)]
    if made_late:
        raise UnsavableError(f"{made_late[0].path}: it is made by the first call, and would come back with a fresh value.")
    how = recording.compare(recorded, given, recording.tolerance(twin.model, alike=True), (losses, again))
    if how is not None:
        raise UnsavableError(
            f"the model would load, and give another output: {how}. A setting is lost, or a sublayer is made anew: "
            "see that each of its parts tells in get_config() all that its call() uses."
        )
    return _counterparts(entries, stored)


def _counterparts(entries: dict[str, dict[str, Any]], stored: dict[str, dict[str, Any]]) -> dict[int, keras.Variable]:
    pairs = [(values[key].variable, entries[path][key]) for path, values in stored.items() for key in values]
    return {id(again): original for again, original in pairs if again is not None and isinstance(original, keras.Variable)}


def _stored(value: Any, place: str) -> Any:
    if isinstance(value, keras.Variable):
        return private.Stored(tuple(value.shape), value.dtype, lambda: private.stored(value), place)
    array = np.asarray(keras.ops.convert_to_numpy(value))
    return private.Stored(array.shape, str(array.dtype), lambda: value, place)


def refuse_measures(twin: Rebuilt, originals: dict[int, Any], measured: dict[int, dict[str, list[float]]], shape: Any) -> None:
    """Refuse a loss or metric that comes back with another value.

    Args:
        twin: The rebuilt model.
        originals: The objects that were serialized, by their ids.
        measured: What the losses and metrics among them give.
        shape: The shape of predictions that they were given.

    Raises:
        UnsavableError: One does.
    """
    for number, before in measured.items():
        again = twin.objects.get(number)
        if again is None:
            continue
        after = recording.values(again, shape)
        for probe, numbers in before.items():
            if probe not in after or not np.allclose(numbers, after[probe], rtol=1e-5, atol=1e-6, equal_nan=True):
                raise UnsavableError(
                    f"{name_of(originals[number])} would come back with another value: {numbers[0]:g} would be "
                    f"{after.get(probe, [float('nan')])[0]:g}. A setting of it is lost: see that get_config() tells them all."
                )
