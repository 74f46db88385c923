"""Run in a process of its own, for a backend: makes parts from recipes, loads models, and answers with arrays.

It reads a request a line from its standard input and writes an answer a line to what was its standard output; what a part
prints goes to the standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import keras

from kustom.backends import current
from kustom.checking import calls, holding
from kustom.checking.making import import_module, import_part, packed, unpacked
from kustom.checking.processes import POOL
from kustom.checking.rules.backends import line_of, of_the_part, one_line, refuse_foreign
from kustom.checking.rules.shapes import symbolic_shapes
from kustom.checking.subjects import Subject, declaration
from kustom.errors import SubjectError


def subject_of(recipe: dict[str, Any]) -> Subject:
    """The subject that a recipe describes."""
    named = import_part(recipe)
    if "config" in recipe:
        try:
            part = keras.saving.deserialize_keras_object(recipe["config"])
        except Exception as error:
            # Whatever a config raises: C102 judges it, and here it is only what keeps the part from being made.
            raise SubjectError(f"it cannot be made from its config: {one_line(error)}") from error
        return Subject(part, kind=recipe["kind"])
    example = {"settings": recipe["settings"]} if "settings" in recipe else None
    if "example" in recipe:
        example = declaration(named)["examples"][recipe["example"]]
    return Subject(named, kind=recipe["kind"], example=example)


def outputs(recipe: dict[str, Any], args: tuple[Any, ...], weights: list[Any] | None = None) -> Any:
    """What the part gives for these arguments, with these weights."""
    subject = subject_of(recipe)
    instance = subject.instance()
    made = calls.call(subject, instance, *args)
    if weights is not None:
        variables = calls.float_variables(instance)
        if [tuple(v.shape) for v in variables] != [w.shape for w in weights]:
            return {"shapes": [tuple(v.shape) for v in variables]}
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)
        made = calls.call(subject, instance, *args)
    refuse_foreign(made)
    return {"outputs": calls.flat(calls.arrays(made))}


def loaded(recipe: dict[str, Any], path: str, args: tuple[Any, ...]) -> Any:
    """What the model in a file does."""
    import_module(recipe)
    model: Any = keras.saving.load_model(path)
    return holding.deeds(model, recipe["kind"], args)


def symbolic(recipe: dict[str, Any], args: tuple[Any, ...]) -> Any:
    """The shapes of the part's outputs for symbolic inputs; where it does not run at all, nothing."""
    subject = subject_of(recipe)
    return symbolic_shapes(subject, subject.instance(), args)


def trained(recipe: dict[str, Any], args: tuple[Any, ...]) -> Any:
    """What fit does with a model that holds the part."""
    subject = subject_of(recipe)
    return holding.trained(subject, subject.instance(), args)


OPERATIONS: dict[str, Callable[..., Any]] = {"outputs": outputs, "loaded": loaded, "symbolic": symbolic, "trained": trained}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked for."""
    current().free_programs()
    operation = OPERATIONS[request.pop("operation")]
    keras.utils.set_random_seed(0)
    try:
        return {"value": operation(**request)}
    except SubjectError as error:
        return {"broken": str(error)}
    except Exception as error:
        # Whatever the part raises is the answer.
        return {"error": one_line(error), "place": line_of(error), "own": of_the_part(error)}


def main() -> None:
    """Answer until the input ends."""
    POOL.serving = True
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write((packed(answer(unpacked(line))) + "\n").encode())
        out.flush()


if __name__ == "__main__":
    main()
