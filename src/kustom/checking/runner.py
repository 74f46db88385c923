"""Runs the battery on a part: cheap checks first, each that depends on another after it, and no failure hides another.

A check's own exception that it does not understand is an outcome, too: "not checked", with what was raised.
"""

from __future__ import annotations

import contextlib
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from kustom.backends import current
from kustom.checking.finding import Finding, Measured, NotChecked, NotRun, Outcome, Passed, Undecided
from kustom.checking.processes import POOL
from kustom.checking.report import Report
from kustom.checking.rules import Rule, load, selected
from kustom.checking.subjects import Subject, subjects_of
from kustom.errors import ConformanceError, UsageError, hide_frames

__all__ = ["check", "checks_of", "run", "run_rule"]

Codes = str | Iterable[str] | None


@hide_frames
def check(
    part_or_instance: Any,
    *,
    inputs: Any = None,
    domain: Any = None,
    expected_failures: dict[str, str] | None = None,
    only: Codes = None,
    skip: Codes = None,
    seed: int | str = 0,
    on_fail: str | None = "raise",
) -> Report:
    """Check that a custom Keras part, whoever wrote it, keeps what Keras and its users rely on.

    Args:
        part_or_instance: A loss, metric, layer, model, activation, initializer, regularizer, constraint or optimizer, an
            instance or a class; a function of one of these kinds; a training step. A class that needs arguments says how it
            is made by an attribute `__kustom__`.
        inputs: What it is called with: a tuple of its arguments, or its one argument; arrays, or structures of them. Made
            from its kind where they are not given.
        domain: From which inputs are made: `"reals"`, `"positive"`, `"unit"`, `"probabilities"`, `"ids"`, `"signs"`, or a
            pair of bounds; a pair of these for the targets and predictions of a loss or metric.
        expected_failures: Reasons by code, beside those that the part declares itself.
        only: Codes to run, or how they begin (`"G"`), as a list or a text with commas; all where it is None.
        skip: Codes to leave out.
        seed: Of the random numbers, which also depend on the part's name and on the code; or `"random"`.
        on_fail: `"raise"`, or None to return the report whatever it says.

    Returns:
        The report.

    Raises:
        ConformanceError: Something was found; the text is the report.
        SubjectError: There is no such part, or it does not say how it is made.
        UsageError: There is no such code.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> def my_softplus(z):
        ...     return ops.log(ops.exp(z) + 1)
        >>> report = kustom.check(my_softplus, only="N301", on_fail=None)
        >>> [finding.code for finding in report.findings]
        ['N301']
        >>> kustom.check(ops.softplus, only="N301").ok
        True
    """
    if on_fail not in ("raise", None):
        raise UsageError(f"on_fail is 'raise' or None, not {on_fail!r}.")
    report = Report()
    if POOL.serving:
        # A script that checks where it defines, imported from there: its own call would start processes without end.
        return report
    given = {"inputs": inputs, "domain": domain, "expected_failures": expected_failures, "seed": seed}
    for subject in subjects_of(part_or_instance, **given):
        one = run(subject, only=only, skip=skip)
        report = Report([*report.outcomes, *one.outcomes], one.seed, report.seconds + one.seconds)
    if on_fail == "raise" and not report.ok:
        raise ConformanceError(report)
    return report


def checks_of(subject: Subject, only: Codes = None, skip: Codes = None, *, preview: bool = False) -> list[Rule]:
    """The rules that hold for a subject's kind and run something, each after those that it needs."""
    chosen = [r for r in selected(only, skip, preview=preview) if subject.kind in r.kinds]
    rank = {"source": -1, "here": 0, "new process": 1, "every backend": 2}
    ordered: list[Rule] = []

    def add(each: Rule) -> None:
        for code in each.needs:
            if load()[code] in chosen:
                add(load()[code])
        if each not in ordered:
            ordered.append(each)

    for each in sorted(chosen, key=lambda r: rank[r.where]):
        add(each)
    return ordered


def run(
    subject: Subject,
    *,
    only: Codes = None,
    skip: Codes = None,
    preview: bool = False,
    backends: list[str] | None = None,
    progress: Callable[[Rule], None] | None = None,
    done: dict[str, list[Outcome]] | None = None,
) -> Report:
    """Run the checks of a subject.

    Args:
        subject: The part.
        only: Codes, or how they begin.
        skip: Codes to leave out.
        preview: Whether new codes run, too.
        backends: On which others it must run; all that are installed where it is None.
        progress: Called with each rule before it runs.
        done: By code, what checks of this subject found before, in this process; they do not run again, those of this run
            join them.
    """
    started = time.perf_counter()
    chosen = checks_of(subject, only, skip, preview=preview)
    backends = POOL.backends if backends is None else [keras.backend.backend(), *backends]
    rooms = {"new process": backends[:1], "every backend": backends[1:]}
    # They start while the checks here run.
    POOL.start([name for where in {each.where for each in chosen} for name in rooms.get(where, [])])
    outcomes = {} if done is None else done
    for each in chosen:
        if progress is not None:
            progress(each)
        # What a chosen check needs runs, chosen or not; of that which was not chosen nothing is reported.
        for code in (*_prerequisites(subject, each), each.code):
            if code not in outcomes:
                outcomes[code] = _outcomes(subject, load()[code], outcomes)
    abroad = {each: _elsewhere(subject, each, outcomes, backends[1:]) for each in chosen if each.where == "every backend"}
    listed = [outcome for each in chosen for outcome in (*outcomes[each.code], *abroad.get(each, ()))]
    return Report(listed, subject.seed, time.perf_counter() - started)


def run_rule(subject: Subject, code: str) -> list[Outcome]:
    """The outcomes of one check, those that it needs run before it."""
    return run(subject, only=[code], preview=True, done=subject.once("outcomes", dict)).outcomes


def _prerequisites(subject: Subject, each: Rule) -> Iterator[str]:
    for code in each.needs:
        if subject.kind in load()[code].kinds:
            yield from _prerequisites(subject, load()[code])
            yield code


def _elsewhere(subject: Subject, each: Rule, done: dict[str, list[Outcome]], backends: list[str]) -> list[Outcome]:
    if any(not isinstance(o, Passed) for o in done[each.code]):
        return []
    found = [outcome for name in backends for outcome in _row(subject, each, name)]
    return [_judged(subject, outcome) for outcome in found]


def _outcomes(subject: Subject, each: Rule, done: dict[str, list[Outcome]]) -> list[Outcome]:
    # What was compiled for one check serves no other.
    current().free_programs()
    missing = tuple(code for code in each.needs if not all(isinstance(o, Passed) for o in done.get(code, [])))
    if missing:
        return [NotRun(each.code, subject.name, missing)]
    if each.where != "source" and each.code != "B601" and subject.kind != "train_step" and not _can_be_made(subject):
        return [NotRun(each.code, subject.name, ("B601",))]
    found: list[Outcome] = []
    here = (keras.backend.backend(),)
    for variant in here if each.where == "every backend" else each.variants or ("",):
        found += _row(subject, each, variant)
    return [_judged(subject, outcome) for outcome in found]


def _can_be_made(subject: Subject) -> bool:
    try:
        subject.instance()
    except Exception:
        # Whatever a constructor raises: the rule that asks whether it runs says so.
        return False
    return True


def _row(subject: Subject, each: Rule, variant: str) -> list[Outcome]:
    found: list[Outcome] = []
    with _quiet(subject, each):
        try:
            for said in (each.check(subject, variant) if variant else each.check(subject)) or ():
                found.append(_outcome(subject, each, said, variant))
        except Exception as error:
            # A part may raise anything anywhere; what is no fault of it must be seen in a test of ours, not be silent.
            found.append(NotChecked(each.code, subject.name, _raised(error), variant, unfinished=True))
    return found or [Passed(each.code, subject.name, variant)]


def _outcome(subject: Subject, each: Rule, said: Measured | Undecided, variant: str) -> Outcome:
    if isinstance(said, Undecided):
        return NotChecked(each.code, subject.name, said.why, said.variant or variant)
    return Finding(
        code=each.code,
        claim=each.name,
        part=subject.name,
        place=said.place or subject.place,
        message=said.message,
        input=said.input,
        got=said.got,
        expected=said.expected,
        why=each.why,
        mend=said.mend or each.mend,
        reproducer=said.reproducer,
        variant=said.variant or variant,
    )


def _judged(subject: Subject, outcome: Outcome) -> Outcome:
    reason = subject.expected_failures.get(outcome.code)
    if reason and isinstance(outcome, Finding):
        return Finding(**{**vars(outcome), "expected_because": reason})
    if reason and isinstance(outcome, Passed):
        return Passed(outcome.code, outcome.part, outcome.variant, after_all=reason)
    return outcome


def _raised(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {text[:200]} ({last.filename.rpartition('/')[2]}:{last.lineno})"


@contextlib.contextmanager
def _quiet(subject: Subject, each: Rule) -> Iterator[None]:
    """One check's surroundings: its own random numbers, Keras's settings put back, and no warnings shown."""
    before = (keras.config.floatx(), keras.config.dtype_policy(), keras.config.is_traceback_filtering_enabled())
    keras.utils.set_random_seed(int(subject.rng(each.code).integers(0, 2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            keras.config.set_floatx(before[0])
            keras.config.set_dtype_policy(before[1])
            (keras.config.enable_traceback_filtering if before[2] else keras.config.disable_traceback_filtering)()
