"""Family M: a metric is the same number however its samples come, with their weights, and starts anew when it is reset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.checking import calls, doubles
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import rule
from kustom.checking.rules.backends import failed
from kustom.checking.subjects import Subject

_METRIC = ("metric",)
SAMPLES = 12


def _is_object(subject: Subject) -> bool:
    return not subject.is_function


def _updated(subject: Subject, metric: Any, args: tuple[Any, ...], rows: Any, weight: Any = None) -> None:
    given = calls.tensors(tuple(x[rows] for x in args))
    weights = {} if weight is None else {"sample_weight": ops.convert_to_tensor(weight[rows])}
    calls.update(metric, *given, **weights)


def _fresh(subject: Subject) -> Any:
    metric = doubles.copy_or_itself(subject)
    metric.reset_state()
    return metric


def _result(metric: Any) -> Any:
    return calls.arrays(metric.result())


def _unlike(one: Any, other: Any) -> tuple[float, float] | None:
    if calls.same(one, other, units=512.0):
        return None
    return calls.worst(one, other)[1:]


@rule(
    "M501",
    kinds=_METRIC,
    asserts="Any split of the samples into batches gives the same result.",
    why="Else the number depends on batch_size, and the last, smaller batch counts as much as the others.",
    example="""
        def update_state(self, y_true, y_pred, sample_weight=None):
            self.total.assign_add(ops.mean(ops.abs(y_true - y_pred)))
            self.batches.assign_add(1)
    """,
    mend="Add up sums and counts of samples, and divide in result; or return kustom.Ratio or kustom.Sums.",
    needs=("B601",),
    variants=("6+6", "5+7", "1+2+9", "one by one"),
)
def splits_do_not_matter(subject: Subject, split: str) -> Iterator[Measured | Undecided]:
    """The result after one update of all is that after several of some."""
    if not _is_object(subject):
        return
    args = subject.inputs.arguments(batch=SAMPLES)
    whole = _fresh(subject)
    _updated(subject, whole, args, slice(None))
    sizes = [1] * SAMPLES if split == "one by one" else [int(size) for size in split.split("+")]
    parts = _fresh(subject)
    start = 0
    expected = _result(whole) if parts is not whole else None
    if expected is None:
        yield Undecided("no second one could be made")
        return
    for size in sizes:
        _updated(subject, parts, args, slice(start, start + size))
        start += size
    apart = _unlike(expected, _result(parts))
    if apart:
        yield Measured(
            f"{SAMPLES} samples at once give {shown(apart[0])}, in batches of {split} {shown(apart[1])}",
            input=split,
            got=shown(apart[1]),
            expected=shown(apart[0]),
            reproducer=subject.reproducer("# part.update_state(y_true[:5], y_pred[:5]); part.update_state(y_true[5:], y_pred[5:])"),
        )


@rule(
    "M502",
    kinds=_METRIC,
    asserts="reset_state makes it new.",
    why="Keras resets at the start of each epoch and of evaluate; what is kept counts twice.",
    example="""
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.seen = []                   # no variable: reset_state does not know it
    """,
    mend="Keep all state in variables made by add_weight, and set each to its start in reset_state.",
    needs=("B601",),
)
def reset_makes_it_new(subject: Subject) -> Iterator[Measured | Undecided]:
    """After an update and a reset it gives what a new one gives."""
    if not _is_object(subject):
        return
    several = [subject.inputs.arguments(batch=SAMPLES, rng=subject.rng(name)) for name in ("M502", "M502 again")]
    # A largest value that is kept shows only where the second samples have a smaller one.
    for first, second in (several, several[::-1]):
        new, used = _fresh(subject), _fresh(subject)
        if new is used:
            yield Undecided("no second one could be made")
            return
        _updated(subject, new, second, slice(None))
        _updated(subject, used, first, slice(None))
        _result(used)
        try:
            used.reset_state()
            _updated(subject, used, second, slice(None))
            got = _result(used)
        except Exception as error:
            # Whatever a metric raises.
            yield failed(subject, error, "after reset_state it fails")
            return
        apart = _unlike(_result(new), got)
        if apart:
            yield Measured(
                f"after reset_state it gives {shown(apart[1])}, a new one {shown(apart[0])}",
                got=shown(apart[1]),
                expected=shown(apart[0]),
                reproducer=subject.reproducer("part.update_state(y_true, y_pred); part.reset_state(); print(part.result())"),
            )
            return


@rule(
    "M503",
    kinds=_METRIC,
    asserts="A weight of 2 counts a sample twice, a weight of 0 not at all.",
    why="evaluate(sample_weight=...), class_weight and masks reach a metric as weights alone.",
    example="""
        def update_state(self, y_true, y_pred, sample_weight=None):
            self.total.assign_add(ops.sum(ops.abs(y_true - y_pred)))      # sample_weight is never read
    """,
    mend="Multiply what is summed by the weight, and count the weights' sum; or use kustom.metric, which does it.",
    needs=("B601",),
)
def weights_count(subject: Subject) -> Iterator[Measured | Undecided]:
    """With weights 0, 1 and 2 against the same samples left out, once, and twice."""
    if not _is_object(subject):
        return
    args = subject.inputs.arguments(batch=SAMPLES)
    weight = np.array([1, 2, 0, 1, 0, 2, 1, 1, 0, 0, 1, 1], "float32")
    weighted, repeated, plain = (doubles.copy_or_itself(subject) for _ in range(3))
    if weighted is repeated:
        yield Undecided("no second one could be made")
        return
    rows = np.repeat(np.arange(SAMPLES), weight.astype(int))
    _updated(subject, repeated, args, rows)
    _updated(subject, plain, args, slice(None))
    try:
        _updated(subject, weighted, args, slice(None), weight)
    except Exception as error:
        # Whatever a metric raises.
        yield failed(subject, error, "it fails when given sample_weight")
        return
    apart = _unlike(_result(repeated), _result(weighted))
    if apart:
        ignored = " as without any: they are ignored" if _unlike(_result(plain), _result(weighted)) is None else ""
        yield Measured(
            f"with weights 0, 1 and 2 it gives {shown(apart[1])}{ignored}; the samples so often give {shown(apart[0])}",
            got=shown(apart[1]),
            expected=shown(apart[0]),
            reproducer=subject.reproducer("part.update_state(y_true, y_pred, sample_weight=w); print(part.result())"),
        )


@rule(
    "M504",
    kinds=_METRIC,
    asserts="result before any update is defined, and asking twice changes nothing.",
    why="Keras asks after every batch, for the progress bar; an epoch without a batch is asked, too.",
    example="""
        def result(self):
            return self.total / self.count       # 0 / 0 before the first batch
    """,
    mend="Use ops.divide_no_nan, or start from what is defined; change no state in result.",
    needs=("B601",),
)
def result_is_defined_and_harmless(subject: Subject) -> Iterator[Measured | Undecided]:
    """Of a new one; and, after an update, once and once more."""
    if not _is_object(subject):
        return
    metric = _fresh(subject)
    try:
        empty = _result(metric)
    except Exception as error:
        # Whatever a metric raises.
        yield failed(subject, error, "result fails before any update")
        return
    values = [np.asarray(x) for x in calls.flat(empty)]
    if any(x.dtype.kind == "f" and not np.all(np.isfinite(x)) for x in values):
        yield Measured(
            f"before any update the result is {shown(values[0])}",
            got=shown(values[0]),
            expected="a finite number",
            reproducer=subject.reproducer("print(part.result())"),
        )
    args = subject.inputs.arguments(batch=SAMPLES)
    _updated(subject, metric, args, slice(None))
    first, second = _result(metric), _result(metric)
    apart = _unlike(first, second)
    if apart:
        yield Measured(
            f"asked twice it gives {shown(apart[0])} and then {shown(apart[1])}",
            got=shown(apart[1]),
            expected=shown(apart[0]),
            reproducer=subject.reproducer("part.update_state(y_true, y_pred); print(part.result(), part.result())"),
        )


@rule(
    "M505",
    kinds=_METRIC,
    asserts="Two metrics merge to the metric of the union of their samples.",
    why="Metrics of several workers are merged so.",
    example="""
        def merge_state(self, metrics):
            for metric in metrics:
                self.mean.assign((self.mean + metric.mean) / 2)
    """,
    mend="Keep sums and counts, which add up; merge_state then adds them up.",
    needs=("B601", "M501"),
)
def merging_is_the_union(subject: Subject) -> Iterator[Measured | Undecided]:
    """One of the first samples merged with one of the rest."""
    if not _is_object(subject):
        return
    args = subject.inputs.arguments(batch=SAMPLES)
    whole, one, other = (_fresh(subject) for _ in range(3))
    if whole is one:
        yield Undecided("no second one could be made")
        return
    _updated(subject, whole, args, slice(None))
    _updated(subject, one, args, slice(0, 5))
    _updated(subject, other, args, slice(5, None))
    try:
        # Keras combines by adding what has no way of its own.
        one.merge_state([other]) if hasattr(one, "merge_state") else _combined(one, other)
        got = _result(one)
    except Exception as error:
        # Whatever a metric raises.
        yield failed(subject, error, "merge_state fails")
        return
    apart = _unlike(_result(whole), got)
    if apart:
        yield Measured(
            f"two that are merged give {shown(apart[1])}, one of all samples {shown(apart[0])}",
            got=shown(apart[1]),
            expected=shown(apart[0]),
            reproducer=subject.reproducer("one.merge_state([other]); print(one.result())"),
        )


@rule(
    "M506",
    kinds=_METRIC,
    asserts="result returns a tensor, not its own Variable.",
    why="On JAX a Variable that leaves a compiled step fails: Triggering __jax_array__() during abstractification.",
    example="""
        def result(self):
            return self.total
    """,
    mend="Return self.total.value, or compute with it.",
    needs=("B601",),
)
def result_is_a_tensor(subject: Subject) -> Iterator[Measured | Undecided]:
    """After an update."""
    if not _is_object(subject):
        return
    metric = _fresh(subject)
    _updated(subject, metric, subject.inputs.arguments(batch=SAMPLES), slice(None))
    for leaf in calls.flat(metric.result()):
        if isinstance(leaf, keras.Variable):
            yield Measured(
                f"result returns its variable {leaf.name!r}",
                got="a Variable",
                expected="a tensor",
                reproducer=subject.reproducer("print(type(part.result()))"),
            )
            return


@rule(
    "M507",
    kinds=_METRIC,
    asserts="It is the same on one replica and on several: its state adds up.",
    why="Under a distribution strategy each replica keeps state of its own, and Keras combines it by adding.",
    example="""
        self.mean = self.add_weight(name="mean", initializer="zeros")       # a running mean does not add up
    """,
    mend="Keep sums and counts, whose sum over replicas is the state of all; or say how it combines: add_weight(aggregation=...).",
    needs=("B601", "M501"),
)
def replicas_add_up(subject: Subject) -> Iterator[Measured | Undecided]:
    """The result of summed variables of two that saw a half each is that of one that saw all."""
    if not _is_object(subject):
        return
    args = subject.inputs.arguments(batch=SAMPLES)
    whole, one, other = (_fresh(subject) for _ in range(3))
    if whole is one:
        yield Undecided("no second one could be made")
        return
    _updated(subject, whole, args, slice(None))
    _updated(subject, one, args, slice(0, 5))
    _updated(subject, other, args, slice(5, None))
    combined = _combined(one, other)
    if combined is None:
        yield Undecided("its variables are combined in another way than by adding")
        return
    apart = _unlike(_result(whole), _result(one))
    if apart:
        yield Measured(
            f"two replicas give {shown(apart[1])} together, one alone {shown(apart[0])}",
            got=shown(apart[1]),
            expected=shown(apart[0]),
            reproducer=subject.reproducer("# for v, w in zip(one.variables, other.variables): v.assign_add(w)"),
        )


def _combined(one: Any, other: Any) -> Any:
    for mine, theirs in zip(one.variables, other.variables, strict=True):
        how = getattr(mine, "aggregation", "none")
        if how == "mean":
            mine.assign((mine + theirs) / 2)
        elif how == "only_first_replica":
            continue
        else:
            mine.assign(mine + theirs)
    return one
