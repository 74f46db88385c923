"""Family B: a part runs, on every backend, with the same numbers.

That it runs here at all is what nearly everything else waits on. Whether a failure is the part's or that of the inputs
which were made for it is told by what is raised: a name or attribute that there is not, or a call with arguments that it
does not take, is of the part whatever it is given.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from typing import Any

from kustom.checking import calls
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import rule
from kustom.checking.subjects import Subject
from kustom.errors import SubjectError

_OF_THE_PART = (NameError, AttributeError, NotImplementedError, RecursionError, ImportError)
_WRONG_CALLS = ("argument", "__jax_array__", "object is not callable")


@rule(
    "B601",
    kinds=("loss", "metric", "layer", "model", "activation", "initializer", "regularizer", "constraint"),
    asserts="It runs on every installed backend.",
    why="A part that calls one backend's functions, or a name that there is not, fails for everybody else, at the first call.",
    example="""
        def my_positive_weights(w):
            return tf.where(w < 0, tf.zeors_like(w), w)
    """,
    mend="Call keras.ops, which every backend has.",
)
def runs(subject: Subject) -> Iterator[Measured | Undecided]:
    """It is called here, with the inputs that were given or found."""
    try:
        instance = subject.instance()
    except SubjectError as error:
        yield Undecided(str(error))
        return
    except Exception as error:
        # Whatever a constructor raises.
        yield failed(subject, error, "it cannot be made")
        return
    try:
        args = subject.inputs.arguments()
    except SubjectError as error:
        yield from _without_inputs(subject, error)
        return
    try:
        calls.call(subject, instance, *args)
    except Exception as error:
        # As above.
        if subject.inputs.user_given or subject.kind not in ("loss", "metric", "layer", "model") or of_the_part(error):
            yield failed(subject, error, "it fails when called", args)
        else:
            yield Undecided(f"the inputs made for it are refused: {one_line(error)}; give inputs=")


def _without_inputs(subject: Subject, why: SubjectError) -> Iterator[Measured | Undecided]:
    own = [(where, error) for where, error in subject.inputs.failures if of_the_part(error)]
    if own and len(own) == len(subject.inputs.failures):
        yield failed(subject, own[0][1], f"it fails when called with {own[0][0]}")
        return
    failures = subject.inputs.failures
    tried = f" (tried {len(failures)}; the first: {one_line(failures[0][1])})" if failures else ""
    yield Undecided(f"{why}{tried}")


def of_the_part(error: BaseException) -> bool:
    """Whether an error is the part's whatever it was called with."""
    if isinstance(error, _OF_THE_PART):
        return True
    return isinstance(error, TypeError) and any(text in str(error) for text in _WRONG_CALLS)


def failed(subject: Subject, error: BaseException, what: str, args: tuple[Any, ...] = ()) -> Measured:
    """The finding that an exception is."""
    place = line_of(error)
    return Measured(
        f"{what}: {one_line(error)}",
        input=", ".join(f"{shown(getattr(x, 'shape', x))}" for x in args if not isinstance(x, list)),
        got=one_line(error),
        expected="a result",
        place=place,
        reproducer=subject.reproducer(
            "part(...)" if not args else f"part({', '.join(f'x{i}' for i in range(len(args)))})",
            inputs={f"x{i}": x for i, x in enumerate(args) if hasattr(x, "dtype")},
        ),
    )


def line_of(error: BaseException) -> str:
    """`file:line` of the last of the user's own lines in a traceback."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(ours) and "site-packages" not in frame.filename and "<" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}"
    return ""


def one_line(error: BaseException) -> str:
    """An exception, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
