"""Family C, saving: what comes out of a file, in a process that has never seen the part, is what went in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.checking import calls, doubles, holding, reaching, steadiness, varying
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.making import parameters_of
from kustom.checking.processes import POOL
from kustom.checking.rules import rule
from kustom.checking.rules.backends import failed, one_line, unanswered
from kustom.checking.subjects import CALL, Subject
from kustom.errors import SubjectError

_BACK = (
    "import json; config = json.loads(json.dumps(keras.saving.serialize_keras_object(part)))",
    "print(keras.saving.deserialize_keras_object(config))",
)


@rule(
    "C103",
    asserts="A model with it, saved, loads in a new process and gives the same output; so does a new one after load_weights.",
    why="A file that loads without a word and computes something else is found out when it is too late.",
    example="""
        class Block(keras.Model):
            def build(self, input_shape):
                self.scale = self.add_weight(shape=())   # and forgets to build self.dense
    """,
    mend="Put every setting into get_config, build every sublayer in build, make no weights in call; or write it with kustom.",
    needs=("B601", "C102", "C104", "C106"),
    where="new process",
)
def file_gives_the_same_part(subject: Subject) -> Iterator[Measured | Undecided]:
    """With its settings away from their defaults and its weights changed."""
    if subject.is_function and subject.kind == "metric":
        return
    try:
        recipe = subject.making.recipe()
    except SubjectError as error:
        yield Undecided(str(error))
        return
    if subject.kind == "metric" and calls.takes_values(subject.instance()):
        yield from _made_anew(subject, recipe)
        return
    part = _unlike_the_default(subject)
    args = subject.inputs.arguments()
    try:
        model = holding.model_with(subject, part, args)
    except Exception:
        # Settings with which it runs on arrays need not be legal for symbolic inputs.
        part = doubles.copy_or_itself(subject)
        try:
            model = holding.model_with(subject, part, args)
        except Exception as error:
            # Whatever a part raises for symbolic inputs is said by S201.
            yield Undecided(f"no model could be made with it: {one_line(error)}")
            return
    calls.moved(model, subject.rng("C103"))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.keras")
        try:
            model.save(path)
        except Exception as error:
            # Whatever a part raises while it is saved.
            yield failed(subject, error, "a model with it cannot be saved")
            return
        if subject.kind in ("layer", "model"):
            yield from _weights_alone(subject, part, model, args, Path(folder))
        answer = POOL.ask(keras.backend.backend(), "loaded", recipe, path=path, args=args)
    what = "a model with it does not load in a new process"
    yield from unanswered(answer, what, expected="the model", reproducer=_reproducer(subject))
    if answer.value is not None:
        yield from _compared(subject, holding.deeds(model, subject.kind, args), answer.value, "after loading it")


def _made_anew(subject: Subject, recipe: dict[str, Any]) -> Iterator[Measured | Undecided]:
    """What no compiled model holds, such as a mean of values, is made anew there by its config."""
    args = subject.inputs.arguments()
    answer = POOL.ask(keras.backend.backend(), "outputs", recipe, args=args)
    yield from unanswered(answer, "it cannot be made in a new process")
    if answer.value is not None:
        ours = {"outputs": calls.outputs_of(subject, subject.instance(), *args)}
        yield from _compared(subject, ours, answer.value, "made in a new process")


def _unlike_the_default(subject: Subject) -> Any:
    """A part with as many settings away from their defaults as go together."""
    if subject.is_function or not subject.making.is_class:
        return doubles.copy_or_itself(subject)
    settings: dict[str, Any] = {}
    for name, (value, _) in varying.all_varied(subject).items():
        try:
            calls.call(subject, subject.make(**settings, **{name: value}), *_args(subject))
        except Exception:
            # Settings that are legal alone need not be together.
            continue
        settings[name] = value
    return subject.make(**settings)


def _args(subject: Subject) -> tuple[Any, ...]:
    return () if subject.kind == "optimizer" else subject.inputs.arguments()


def _compared(subject: Subject, ours: dict[str, Any], theirs: dict[str, Any], when: str) -> Iterator[Measured]:
    if subject.kind != "initializer" and steadiness.draws(subject):
        ours = {name: value for name, value in ours.items() if name == "config"}
    for name, value in ours.items():
        other = theirs.get(name)
        if name == "config":
            if json.loads(value) != json.loads(other or "null"):
                yield Measured(f"{when} it has another config", got=shown(other or "", 300), expected=shown(value, 300))
                return
        elif other is None or not calls.same(value, other, units=256.0):
            _, a, b = calls.worst(value, other) if other is not None else (0, 0.0, 0.0)
            message = f"{when} the output is {shown(b)}, and was {shown(a)}"
            yield Measured(message, got=shown(b), expected=shown(a), reproducer=_reproducer(subject))
            return


_PLACES_IN_DENSE = {
    "activation": "activation",
    "initializer": "kernel_initializer",
    "regularizer": "kernel_regularizer",
    "constraint": "kernel_constraint",
}


def _reproducer(subject: Subject) -> str:
    dense = (
        f"keras.layers.Dense(4, {_PLACES_IN_DENSE[subject.kind]}=part)"
        if subject.kind in _PLACES_IN_DENSE
        else "keras.layers.Dense(4)"
    )
    lines = [f"model = keras.Sequential([keras.Input((4,)), {dense}])"]
    if subject.kind == "model":
        lines = ["part(x)", "model = part"]
    elif subject.kind == "layer":
        lines = ["model = keras.Sequential([part])", "model(x)"]
    elif subject.kind in ("loss", "metric"):
        lines.append(f"model.compile('sgd', {'loss=part' if subject.kind == 'loss' else 'metrics=[part]'})")
    return subject.reproducer(
        *lines, "model.save('model.keras')", "# in a new process, with the module imported: keras.saving.load_model('model.keras')"
    )


def _weights_alone(subject: Subject, part: Any, model: keras.Model, args: tuple[Any, ...], folder: Path) -> Iterator[Measured]:
    """A new instance, built, gives the same after `load_weights`."""
    path = str(folder / "model.weights.h5")
    fresh = type(part).from_config(part.get_config())
    try:
        model.save_weights(path)
        if subject.kind == "model" and not private.is_functional(fresh) and "build" in vars(type(fresh)):
            shapes = calls.mapped(lambda x: tuple(x.shape), args)
            fresh.build(*shapes)
            other = fresh
        else:
            other = holding.model_with(subject, fresh, args)
        other.load_weights(path)
        theirs = holding.deeds(other, subject.kind, args)
    except Exception as error:
        # Whatever Keras or the part raises.
        yield failed(subject, error, "a new one, built, does not take the weights that were saved")
        return
    ours = holding.deeds(model, subject.kind, args)
    yield from _compared(subject, ours, theirs, "after load_weights into a new one that was built,")


@rule(
    "C108",
    asserts="Settings come back in their own type, and the one that is saved is the one it has now.",
    why="A tuple that comes back as a list, or an array as a dict, fails in the code that was written for the other.",
    example="""
        class Tail(keras.layers.Layer):
            def __init__(self, tail=(2,), **kwargs):
                super().__init__(**kwargs)
                self.tail = tail            # a list after loading: (3,) + self.tail fails
    """,
    mend="Make it its type in __init__ (self.tail = tuple(tail), np.asarray(target)), and give its current value in get_config.",
    needs=("C101", "B601"),
)
def settings_keep_their_types(subject: Subject) -> Iterator[Measured | Undecided]:
    """Each argument's attribute, before and after a trip through JSON; and one that is changed late."""
    if not varying.has_config(subject):
        return
    part = subject.instance()
    try:
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(part)))
        with keras.saving.CustomObjectScope({type(part).__name__: type(part)}):
            copy = keras.saving.deserialize_keras_object(config)
    except Exception as error:
        # Whatever a config raises.
        if _copies(part):
            yield failed(subject, error, "it does not come back from plain JSON", shows=_BACK)
        else:
            yield Undecided("its config makes no copy of it: see C102")
        return
    for name in parameters_of(type(part)):
        # Not what a class has under the name, such as a property; torch keeps layers elsewhere than in `vars`.
        held = not hasattr(type(part), name) and hasattr(part, name) and hasattr(copy, name)
        if held and not private.is_library(type(part).__module__):
            before, after = getattr(part, name), getattr(copy, name)
            if _type(before) != _type(after):
                yield Measured(
                    f"the setting {name!r} is {_type(before)} and comes back as {_type(after)}",
                    got=shown(after),
                    expected=shown(before),
                    reproducer=subject.reproducer(
                        _BACK[0],
                        f"print(keras.saving.deserialize_keras_object(config).{name})",
                    ),
                )
    yield from _changed_late(subject)


def _copies(part: Any) -> bool:
    try:
        type(part).from_config(part.get_config())
    except Exception:
        # As above.
        return False
    return True


def _type(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, int | np.integer):
        return "int"
    if isinstance(value, float | np.floating):
        return "float"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, tuple):
        return f"a tuple of ({', '.join(_type(each) for each in value)})"
    if isinstance(value, list):
        return f"a list of ({', '.join(_type(each) for each in value)})"
    if isinstance(value, dict):
        return f"a dict of ({', '.join(f'{k}: {_type(v)}' for k, v in value.items())})"
    return "None" if value is None else type(value).__name__


def _changed_late(subject: Subject) -> Iterator[Measured]:
    """A number that is assigned to an attribute and changes what the part gives is in the config from then on."""
    for name in parameters_of(type(subject.instance())):
        try:
            part = subject.make()
        except SubjectError:
            return
        value = vars(part).get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or subject.kind == "optimizer":
            continue
        args = subject.inputs.arguments()
        try:
            before = calls.outputs_of(subject, part, *args)
            again = calls.outputs_of(subject, part, *args)
            setattr(part, name, value * 2 + 0.125 if isinstance(value, float) else value + 1)
            after = calls.outputs_of(subject, part, *args)
            config = part.get_config()
        except Exception:
            # A setting that cannot be changed is none that is changed late.
            continue
        if calls.same(before, again) and not calls.same(before, after) and config.get(name) == value:
            yield Measured(
                f"the setting {name!r}, changed to {shown(getattr(part, name))}, is saved as {shown(value)}",
                got=shown(value),
                expected=shown(getattr(part, name)),
                reproducer=subject.reproducer(f"part.{name} = {getattr(part, name)!r}", f"print(part.get_config()[{name!r}])"),
                mend="Give the attribute in get_config; the config that Keras records by itself is that of the constructor's call.",
            )


@rule(
    "C109",
    kinds=("layer", "model"),
    asserts="Every sublayer that its attributes reach is tracked once, and shared ones stay shared in a copy.",
    why="A layer that Keras does not see is not trained, not counted, and not in the file.",
    example="""
        row = []
        self.grid.append(row)
        row.append(keras.layers.Dense(3))       # too late: Keras has looked at the empty list
    """,
    mend="Assign lists when they are complete, keep layers in attributes, lists, tuples and dicts; not in sets or other objects.",
    needs=("B601",),
)
def sublayers_are_tracked(subject: Subject) -> Iterator[Measured | Undecided]:
    """Of the layers, metrics and variables within its attributes, none is unknown to Keras."""
    part = subject.instance()
    calls.call(subject, part, *subject.inputs.arguments())
    known = {id(each) for each in [part, *private.descendants(part)]}
    weights = {id(v) for v in part.variables}
    for path, layer in reaching.layers_in(part):
        if id(layer) not in known and any(id(v) not in weights for v in layer.variables):
            yield Measured(
                f"the {type(layer).__name__} in its attribute {path} is not tracked: {len(layer.variables)} weights are missing",
                got=f"{len(part.weights)} weights",
                expected=f"{len(part.weights) + len(layer.weights)} weights",
                reproducer=subject.reproducer(CALL, "print(len(part.weights))"),
            )
            return
    try:
        copy = subject.make()
        calls.call(subject, copy, *subject.inputs.arguments())
    except Exception:
        # C102 says what it raises.
        return
    ours, theirs = len({id(v) for v in part.variables}), len({id(v) for v in copy.variables})
    if ours != theirs:
        yield Measured(
            f"a copy by its config has {theirs} variables and the part {ours}: what was shared no longer is",
            got=f"{theirs} variables",
            expected=f"{ours} variables",
            reproducer=subject.reproducer(
                "copy = type(part).from_config(part.get_config())", "print(len(copy.weights), len(part.weights))"
            ),
        )
