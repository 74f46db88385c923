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
from kustom.checking.subjects import CALL, Subject

_METRIC = ("metric",)
SAMPLES = 12


def _is_object(subject: Subject) -> bool:
    return not subject.is_function


def _updated(metric: Any, args: tuple[Any, ...], rows: Any = slice(None), weight: Any = None) -> None:
    given = calls.tensors(tuple(x[rows] for x in args))
    weights = {} if weight is None else {"sample_weight": ops.convert_to_tensor(weight[rows])}
    calls.update(metric, *given, **weights)


def _fresh(subject: Subject) -> Any:
    metric = doubles.copy_or_itself(subject)
    metric.reset_state()
    return metric


def _result(metric: Any) -> Any:
    return calls.arrays(metric.result())


def _alike(one: Any, other: Any) -> bool:
    return calls.same(one, other, units=512.0)


_WEIGHED = "part.update_state(y_true, y_pred, sample_weight=keras.ops.arange(y_pred.shape[0]))"
# Two metrics of a kind, each with half of the samples.
_TWO = (
    "one, other = (type(part).from_config(part.get_config()) for _ in range(2))",
    "one.update_state(y_true[:1], y_pred[:1]); other.update_state(y_true[1:], y_pred[1:])",
)


def _unlike(expected: Any, got: Any, message: str, reproducer: str, given: str = "") -> Iterator[Measured]:
    """A finding where two results differ; `message` has a place for each of them."""
    if _alike(expected, got):
        return
    numbers = dict(zip(("expected", "got"), map(shown, calls.worst(expected, got)[1:]), strict=True))
    yield Measured(message.format(**numbers), input=given, reproducer=reproducer, **numbers)


def _of_halves(subject: Subject) -> tuple[Any, Any, Any] | None:
    """Metrics of all samples, of the first and of the rest; None where there is only the one that was given."""
    whole, one, other = (_fresh(subject) for _ in range(3))
    if whole is one:
        return None
    args = subject.inputs.arguments(batch=SAMPLES)
    for metric, rows in ((whole, slice(None)), (one, slice(0, 5)), (other, slice(5, None))):
        _updated(metric, args, rows)
    return whole, one, other


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
    _updated(whole, args)
    sizes = [1] * SAMPLES if split == "one by one" else [int(size) for size in split.split("+")]
    parts = _fresh(subject)
    start = 0
    expected = _result(whole) if parts is not whole else None
    if expected is None:
        yield Undecided("no second one could be made")
        return
    for size in sizes:
        _updated(parts, args, slice(start, start + size))
        start += size
    yield from _unlike(
        expected,
        _result(parts),
        f"{SAMPLES} samples at once give {{expected}}, in batches of {split} {{got}}",
        subject.reproducer(
            "part.update_state(y_true, y_pred); print(part.result())",
            "part.reset_state(); part.update_state(y_true[:1], y_pred[:1])",
            "part.update_state(y_true[1:], y_pred[1:]); print(part.result())",
        ),
        given=split,
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
    # A largest value that is kept shows only where the second samples have a smaller one, as one sample alone may have.
    alone = [tuple(x[:1] for x in args) for args in several]
    for first, second in (several, several[::-1], (several[0], alone[1]), (several[1], alone[0])):
        new, used = _fresh(subject), _fresh(subject)
        if new is used:
            yield Undecided("no second one could be made")
            return
        _updated(new, second)
        _updated(used, first)
        _result(used)
        try:
            used.reset_state()
            _updated(used, second)
            got = _result(used)
        except Exception as error:
            # Whatever a metric raises.
            yield failed(subject, error, "after reset_state it fails", shows=(CALL, "part.reset_state()", CALL, "part.result()"))
            return
        expected = _result(new)
        if not _alike(expected, got):
            yield from _unlike(
                expected,
                got,
                "after reset_state it gives {got}, a new one {expected}",
                subject.reproducer("part.update_state(y_true, y_pred); part.reset_state(); print(part.result())"),
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
    _updated(repeated, args, rows)
    _updated(plain, args)
    try:
        _updated(weighted, args, weight=weight)
    except Exception as error:
        # Whatever a metric raises.
        yield failed(subject, error, "it fails when given sample_weight", shows=(_WEIGHED,))
        return
    ignored = " as without any: they are ignored" if _alike(_result(plain), _result(weighted)) else ""
    yield from _unlike(
        _result(repeated),
        _result(weighted),
        f"with weights 0, 1 and 2 it gives {{got}}{ignored}; the samples so often give {{expected}}",
        subject.reproducer(f"{_WEIGHED}; print(part.result())"),
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
        yield failed(subject, error, "result fails before any update", shows=("part.result()",))
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
    _updated(metric, args)
    yield from _unlike(
        _result(metric),
        _result(metric),
        "asked twice it gives {expected} and then {got}",
        subject.reproducer("part.update_state(y_true, y_pred); print(part.result(), part.result())"),
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
    halves = _of_halves(subject)
    if halves is None:
        yield Undecided("no second one could be made")
        return
    whole, one, other = halves
    try:
        # Keras combines by adding what has no way of its own.
        one.merge_state([other]) if hasattr(one, "merge_state") else _combine(one, other)
        got = _result(one)
    except Exception as error:
        # Whatever a metric raises.
        yield failed(subject, error, "merge_state fails", shows=(*_TWO, "one.merge_state([other])"))
        return
    yield from _unlike(
        _result(whole),
        got,
        "two that are merged give {got}, one of all samples {expected}",
        subject.reproducer(
            *_TWO, "one.merge_state([other]); part.update_state(y_true, y_pred); print(one.result(), part.result())"
        ),
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
    _updated(metric, subject.inputs.arguments(batch=SAMPLES))
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
    halves = _of_halves(subject)
    if halves is None:
        yield Undecided("no second one could be made")
        return
    whole, one, other = halves
    _combine(one, other)
    yield from _unlike(
        _result(whole),
        _result(one),
        "two replicas give {got} together, one alone {expected}",
        subject.reproducer(
            *_TWO,
            "for ours, theirs in zip(one.variables, other.variables): ours.assign_add(theirs)",
            "part.update_state(y_true, y_pred); print(one.result(), part.result())",
        ),
    )


def _combine(one: Any, other: Any) -> None:
    """Put the variables of both into the first, as Keras does it for replicas."""
    for mine, theirs in zip(one.variables, other.variables, strict=True):
        how = getattr(mine, "aggregation", "none")
        if how == "mean":
            mine.assign((mine + theirs) / 2)
        elif how == "only_first_replica":
            continue
        else:
            mine.assign(mine + theirs)
