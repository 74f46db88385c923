"""Family C, config: what a part says of itself is all that it was made with, plain, and makes the same part again."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.checking import calls, steadiness, stepping, varying
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.making import parameters_of
from kustom.checking.rules import rule
from kustom.checking.rules.backends import failed, one_line
from kustom.checking.subjects import CALL, Subject
from kustom.errors import SubjectError

_REFUSED = re.compile(r"unexpected keyword argument '(\w+)'")
# Keras's own arguments, which its base classes save.
_OF_KERAS = ("name", "dtype", "trainable", "reduction", "autocast", "activity_regularizer")


@rule(
    "C101",
    asserts="Every constructor argument comes back from get_config.",
    why="What is not in the config is not in the file: the part loads with the default, without a word.",
    example="""
        class HuberLoss(keras.losses.Loss):
            def __init__(self, threshold=1.0, **kwargs):
                super().__init__(**kwargs)
                self.threshold = threshold
    """,
    mend="Add it: return {**super().get_config(), 'threshold': self.threshold} in get_config; or write the part with kustom.",
)
def config_holds_every_argument(subject: Subject) -> Iterator[Measured | Undecided]:
    """An argument that is not in the config is a fault where another value than its default was given."""
    if not varying.has_config(subject):
        return
    part = subject.instance()
    try:
        config = part.get_config()
    except Exception as error:
        # Whatever a config raises.
        yield failed(subject, error, "get_config fails", shows=("part.get_config()",))
        return
    for name, parameter in parameters_of(type(part)).items():
        if name in config or (name in _OF_KERAS and parameter.default is not parameter.empty):
            continue
        if varying.overrides_from_config(part) and not varying.lost(subject, name):
            continue
        if parameter.default is parameter.empty:
            if isinstance(part, keras.Model) and name in ("inputs", "outputs", "layers"):
                continue
            yield _missing(subject, part, name, "which it cannot be made without")
            continue
        other = varying.another(subject, name)
        if other is None:
            continue
        value, made = other
        if parameter.default is None and not varying.matters(subject, made):
            continue
        if name not in made.get_config():
            yield _missing(subject, part, name, f"made with {shown(value)} it comes back with {shown(parameter.default)}", value)


def _missing(subject: Subject, part: Any, name: str, what: str, value: Any = None) -> Measured:
    config = list(part.get_config())
    return Measured(
        f"the argument {name!r} is not in the config: {what}",
        input=f"{name}={shown(value)}" if value is not None else "",
        got=f"a config with {', '.join(config)}",
        expected=f"a config with {name}",
        reproducer=subject.reproducer(f"print({name!r} in part.get_config())  # should be True"),
        mend=f"Keep it as an attribute, and add it: return {{**super().get_config(), {name!r}: self.{name}}} in get_config "
        "(an object by keras.saving.serialize_keras_object); or write the part with kustom.",
    )


@rule(
    "C102",
    asserts="from_config(get_config()) makes a part that behaves the same.",
    why="Keras makes every part that it loads, clones or copies that way.",
    example="""
        class Scale(keras.layers.Layer):
            def get_config(self):
                return {"factor": 2.0}
    """,
    mend="Put the current value of each argument into the config, under the argument's name.",
    needs=("B601",),
)
def config_makes_the_same_part(subject: Subject) -> Iterator[Measured | Undecided]:
    """As it was given, and with each setting that can be varied away from its default."""
    if not varying.has_config(subject):
        return
    named: list[tuple[str, Any]] = [("", subject.instance())]
    named += [(name, made) for name, (_, made) in varying.all_varied(subject).items()]
    for name, part in named:
        try:
            config = part.get_config()
            made = type(part).from_config(config)
        except Exception as error:
            # Whatever a config raises.
            what = "from_config(get_config()) fails" + (f" for another {name}" if name else "")
            refused = _REFUSED.search(str(error)) if isinstance(error, TypeError) else None
            yield failed(
                subject,
                error,
                what,
                shows=("type(part).from_config(part.get_config())",),
                mend=_mend_refused(part, refused[1]) if refused else "",
            )
            return
        try:
            found = _difference(subject, part, made)
        except SubjectError as error:
            yield Undecided(str(error))
            return
        except Exception as error:
            # A varied setting may be illegal together with the inputs.
            if name:
                continue
            yield failed(
                subject, error, "the copy fails when called", shows=("part = type(part).from_config(part.get_config())", CALL)
            )
            return
        if found:
            where = f" with another {name}" if name else ""
            yield Measured(
                f"the copy{where} {found[0]}",
                got=found[1],
                expected=found[2],
                reproducer=subject.reproducer(
                    f"print({CALL})", "part = type(part).from_config(part.get_config())", f"print({CALL})"
                ),
            )
            return


def _mend_refused(part: Any, name: str) -> str:
    bases = [base for base in type(part).__mro__ if private.is_library(base.__module__) and base is not object]
    if any(name in parameters_of(base) for base in bases):
        return "Take **kwargs in __init__, and hand them on: super().__init__(**kwargs); the config has Keras's own, too."
    return f"Name each entry of the config as the constructor's argument is named: {name!r} is none."


def _difference(subject: Subject, part: Any, made: Any) -> tuple[str, str, str] | None:
    ours, theirs = _text(part.get_config()), _text(made.get_config())
    if ours != theirs:
        return "has another config", theirs[:200], ours[:200]
    if steadiness.draws(subject):
        return None
    if subject.kind == "optimizer":
        before, after = stepping.trained_by(part), stepping.trained_by(made)
    else:
        args = subject.inputs.arguments()
        before = calls.outputs_of(subject, part, *args)
        if not calls.same(before, calls.outputs_of(subject, part, *args)):
            # It keeps a state from call to call, such as a recurrent layer that is told to.
            return None
        after = calls.outputs_of(subject, made, *args)
        if subject.kind in ("layer", "model"):
            if not calls.cloned_weights(part, made):
                shapes = [[tuple(v.shape) for v in each.variables] for each in (made, part)]
                return "has other weights", shown(shapes[0]), shown(shapes[1])
            after = calls.outputs_of(subject, made, *args)
    if not calls.same(before, after):
        _, a, b = calls.worst(before, after)
        return f"gives {shown(b)} where the part gives {shown(a)}", shown(b), shown(a)
    return None


def _text(config: Any) -> str:
    """A config as text, without the names that Keras numbers."""
    plain: Any = keras.saving.serialize_keras_object(config)
    return json.dumps({k: v for k, v in plain.items() if k != "name"}, sort_keys=True, default=repr)


@rule(
    "C104",
    asserts="It is registered with Keras, so that a file with it loads by itself.",
    why="Loading an unregistered part needs the class at hand, by name, from whoever loads; else it fails.",
    example="""
        class ResidualBlock(keras.layers.Layer):
            ...
    """,
    mend="Write @keras.saving.register_keras_serializable('my_package') above it, or make it with kustom.",
)
def registered(subject: Subject) -> Iterator[Measured | Undecided]:
    """Keras finds it under its registered name, or it is Keras's own."""
    named = subject.part if subject.is_function else type(subject.instance())
    if private.is_known_function(named) or private.is_library(named.__module__):
        return
    if private.is_functional(subject.instance()) and type(subject.instance()) in (keras.Model, keras.Sequential):
        return
    yield Measured(
        f"{named.__qualname__} is not registered",
        got=f"the name {keras.saving.get_registered_name(named)!r}, which Keras does not know",
        expected="a name with its package",
        reproducer=subject.reproducer("print(keras.saving.get_registered_name(part if hasattr(part, '__name__') else type(part)))"),
    )


@rule(
    "C105",
    asserts="Its registered name is its own.",
    why="Where two parts are registered under one name, the files of the first load as the second, without a word.",
    example="""
        @keras.saving.register_keras_serializable()   # "Custom>Gate", as in every other module
        class Gate(keras.layers.Layer):
            ...
    """,
    mend="Register it with a package: @keras.saving.register_keras_serializable('my_package').",
    needs=("C104",),
)
def name_is_its_own(subject: Subject) -> Iterator[Measured | Undecided]:
    """Under its name Keras finds it, and has never had another."""
    named: Any = subject.part if subject.is_function else type(subject.instance())
    if private.is_library(named.__module__):
        return
    name = keras.saving.get_registered_name(named)
    found = private.registered(name)
    others = [each for each in private.registered_as(name) if each is not named and not _same_place(each, named)]
    if found is not None and found is not named and not _same_place(found, named):
        others.insert(0, found)
    # A decorated activation is registered as the part that it is by default.
    others = [each for each in others if each is not getattr(named, "default_part", None)]
    if others:
        place = f"{others[0].__module__}.{others[0].__qualname__}"
        yield Measured(
            f"the name {name!r} is also that of {place}",
            got=place,
            expected=f"{named.__module__}.{named.__qualname__} alone",
            reproducer=subject.reproducer(f"print(keras.saving.get_registered_object({name!r}))"),
        )


def _same_place(one: Any, other: Any) -> bool:
    """Whether one is the other, defined again: a cell run twice, a module reloaded."""
    return (one.__module__, one.__qualname__, _line(one)) == (other.__module__, other.__qualname__, _line(other)) and (
        "<locals>" not in one.__qualname__
    )


def _line(each: Any) -> Any:
    return None if "<locals>" not in each.__qualname__ else id(each)


@rule(
    "C106",
    asserts="Its config names no lambda, closure or nameless function.",
    why="A file holds a function's name alone: the values that it closes over are lost, and another of that name is taken.",
    example="""
        def create_huber(threshold=1.0):
            def huber_fn(y_true, y_pred):
                ...  # uses threshold
            return huber_fn
    """,
    mend="Make what it closes over a setting: of a class with get_config, or of a function decorated with kustom.",
)
def functions_have_names(subject: Subject) -> Iterator[Measured | Undecided]:
    """Neither the part nor a setting of it is a function that no file can name."""
    if subject.is_function:
        found = [("the part itself", subject.part)]
    else:
        found = [(f"the setting {name!r}", value) for name, value in varying.functions_in(subject.instance())]
    for where, function in found:
        why = _nameless(function)
        if why:
            yield Measured(
                f"{where} is {why}",
                got=why,
                expected="a function of a module, registered",
                reproducer=subject.reproducer("print(keras.saving.serialize_keras_object(part))"),
            )


def _nameless(function: Any) -> str:
    if function.__name__ == "<lambda>":
        return "a lambda"
    own = getattr(function, "__code__", None)
    cells = [
        name
        for name, cell in zip(getattr(own, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False)
        if not _is_code(cell)
    ]
    if cells and not private.is_library(function.__module__):
        return f"the closure {function.__qualname__}, which takes {', '.join(cells)} from the function around it"
    if "<locals>" in getattr(function, "__qualname__", "") and not private.is_known_function(function):
        return f"{function.__qualname__}, which is defined inside of a function and not registered"
    return ""


def _is_code(cell: types.CellType) -> bool:
    """Whether a closure holds what every making of it holds alike: a function, class or module."""
    try:
        return isinstance(cell.cell_contents, types.FunctionType | types.ModuleType | type)
    except ValueError:
        # Not filled yet: a function that names itself.
        return True


@rule(
    "C107",
    asserts="Its config is plain JSON, or what Keras makes plain JSON.",
    why="Saving fails, or writes something that is read back as something else: an array comes back as a dict.",
    example="""
        def get_config(self):
            return {"target": np.zeros((3, 2)), "scale": keras.ops.ones(())}
    """,
    mend="Give lists and numbers (array.tolist()), nested parts by keras.saving.serialize_keras_object; or make it with kustom.",
    needs=("C101",),
)
def config_is_plain(subject: Subject) -> Iterator[Measured | Undecided]:
    """No entry is an array, a tensor, or an object that Keras cannot write."""
    if not varying.has_config(subject):
        return
    part = subject.instance()
    config = part.get_config()
    for path, value in varying.leaves(config):
        if varying.is_plain(value):
            continue
        yield Measured(
            f"the config's {path} is {_kind(value)}",
            got=_kind(value),
            expected="plain data",
            reproducer=subject.reproducer(f"print(type(part.get_config()[{path.split('.')[0]!r}]))"),
        )
    try:
        json.dumps(keras.saving.serialize_keras_object(part))
    except Exception as error:
        # Whatever it raises, it is what saving raises.
        yield failed(
            subject,
            error,
            f"it cannot be written: {one_line(error)}",
            shows=("import json; json.dumps(keras.saving.serialize_keras_object(part))",),
        )


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"
