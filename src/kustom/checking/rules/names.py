"""Family U, names and calls: read from the source, with nothing of it run.

The work is done by `kustom.checking.sources`, for a whole file at once; a check here takes from it what stands on the lines
of its part.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from kustom.checking.finding import Measured, Undecided
from kustom.checking.rules import KINDS, rule
from kustom.checking.sources import Problem, Source, of_file
from kustom.checking.subjects import Subject

__all__ = ["measured"]


@rule(
    "U001",
    kinds=KINDS,
    asserts="Every name in its body is defined.",
    why="The line raises a NameError when it is reached, which may be in the first step of training, or at inference only.",
    example="""
        def huber_fn(y_true, y_pred):
            squared_loss = ops.square(y_true - y_pred) / 2
            return ops.where(is_small_error, square_loss, linear_loss)
    """,
    mend="Write the name as it was defined; the message names the nearest.",
    where="source",
)
def names_are_defined(subject: Subject) -> Iterator[Measured | Undecided]:
    """Every name is bound in the body, in a function around it, in the module, or by Python."""
    yield from _on_its_lines(subject, "U001")


@rule(
    "U002",
    kinds=KINDS,
    asserts="No call, argument or name is one that Keras 3 took away, or does not know.",
    why="What Keras 2 called so raises an error in Keras 3, often late: when a shape is asked for, or a metric is reset.",
    example="""
        self.total = self.add_weight("total", initializer="zeros")   # the first argument is the shape
        optimizer = keras.optimizers.Nadam(lr=0.01)
        metric.reset_states()
        shape = input_shape.as_list()
    """,
    mend="Write it as Keras 3 does: add_weight(name=...), learning_rate=, reset_state, list(shape); the message says which.",
    where="source",
)
def calls_are_those_of_keras_3(subject: Subject) -> Iterator[Measured | Undecided]:
    """Arguments are in Keras's signatures, attributes in its classes, texts among its names."""
    yield from _on_its_lines(subject, "U002")


@rule(
    "U003",
    kinds=KINDS,
    asserts="Every attribute of tf, keras, ops, np, jnp and torch exists.",
    why="The line raises an AttributeError when it is reached.",
    example="""
        def my_positive_weights(weights):
            return tf.where(weights < 0.0, tf.zeors_like(weights), weights)
    """,
    mend="Write the name that the library has; the message names the nearest.",
    where="source",
)
def attributes_exist(subject: Subject) -> Iterator[Measured | Undecided]:
    """Every name that is asked of a library is there, in the version that is installed."""
    yield from _on_its_lines(subject, "U003")


@rule(
    "U004",
    kinds=KINDS,
    asserts="A parameter that Keras passes by name has that name: training, mask, sample_weight, dtype.",
    why="A misspelt one is never set, so that a layer stays in one mode, or a metric forgets its weights.",
    example="""
        def call(self, inputs, trianing=None):
            ...
    """,
    mend="Spell it as Keras does.",
    where="source",
)
def parameters_have_the_names_that_keras_passes(subject: Subject) -> Iterator[Measured | Undecided]:
    """No parameter is a near miss of one that Keras passes by name."""
    yield from _on_its_lines(subject, "U004")


def measured(problem: Problem, place: str = "") -> Measured:
    """A problem as what a check yields."""
    return Measured(problem.message, got=problem.got, expected=problem.expected, mend=problem.mend, place=place)


def _on_its_lines(subject: Subject, code: str) -> Iterator[Measured | Undecided]:
    found = subject.once("source", lambda: _source(subject.part))
    if found is None:
        yield Undecided("its source is not at hand")
        return
    source, first, last = found
    if code in source.undecided:
        yield Undecided(source.undecided[code])
    for problem in source.within(first, last):
        if problem.code == code:
            yield measured(problem, f"{source.filename}:{problem.line}")


def _source(part: Any) -> tuple[Source, int, int] | None:
    """The text of a part's file, and the lines on which it stands."""
    written = getattr(part, "fn", part)
    if not isinstance(written, type) and not inspect.isfunction(written):
        written = type(written)
    try:
        file = inspect.getsourcefile(inspect.unwrap(written))
        lines, first = inspect.getsourcelines(written)
    except (TypeError, OSError):
        # Made at run time, in C, or at a prompt.
        return None
    source = of_file(file) if file else None
    return None if source is None else (source, max(first, 1), max(first, 1) + len(lines) - 1)
