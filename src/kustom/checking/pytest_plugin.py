"""The battery as tests of pytest: one for each part and check, so that they are chosen, counted and shared out like any other.

Names are made of the part's name, the code and the claim; none holds an address or the representation of an object, so that
they are the same in each of several workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kustom.checking.finding import Finding, NotChecked, NotRun, Outcome
from kustom.checking.optional import library
from kustom.checking.report import Report
from kustom.checking.rules import Rule
from kustom.checking.runner import Codes, checks_of, run_rule
from kustom.checking.subjects import Subject, subjects_of
from kustom.errors import ConformanceError, UsageError

__all__ = ["Check", "different", "judge", "parametrize_with_checks"]


class Check:
    """One check of one part, to be called by a test.

    Attributes:
        subject: The part.
        rule: The rule.
    """

    def __init__(self, subject: Subject, rule: Rule) -> None:
        self.subject, self.rule = subject, rule

    def __call__(self, part: Any = None) -> None:
        """Run it.

        Args:
            part: The part, as the test has it; it is the one that the check was made for.

        Raises:
            ConformanceError: Something was found.
        """
        judge(run_rule(self.subject, self.rule.code), self.subject.seed)

    def __repr__(self) -> str:
        return f"{self.rule.code}-{self.rule.name}"


def parametrize_with_checks(
    parts: Iterable[Any], *, only: Codes = None, skip: Codes = None, seed: int | str = 0
) -> Callable[[Callable[..., Any]], Any]:
    """Make a test of two arguments, `part` and `check`, into one test for each part and check.

    A check that could not decide, or waits on another, is skipped with its reason; one that the part declares an expected
    failure is marked as such, so that pytest reports it where it passes after all.

    Args:
        parts: Instances, classes or functions, as `kustom.check` takes them.
        only: Codes to run, or how they begin (`"G"`); all where it is None.
        skip: Codes to leave out.
        seed: Of the random numbers, or `"random"`.

    Returns:
        A decorator for the test.

    Raises:
        SubjectError: A part is none, or does not say how it is made.
        UsageError: There is no such code.

    Example:
        >>> import keras, kustom
        >>> @kustom.parametrize_with_checks([keras.layers.Dense(4), keras.losses.MeanSquaredError()], only="U")
        ... def test_parts_keep_what_keras_relies_on(part, check):
        ...     check(part)
        >>> [mark.name for mark in test_parts_keep_what_keras_relies_on.pytestmark]
        ['parametrize']
    """
    pytest = library("pytest")
    subjects = [subject for part in parts for subject in subjects_of(part, seed=seed)]
    if not subjects:
        raise UsageError("parametrize_with_checks was given no parts; give a list of instances, classes or functions.")
    cases = []
    for subject, name in zip(subjects, different([subject.name for subject in subjects]), strict=True):
        for rule in checks_of(subject, only, skip):
            reason = subject.expected_failures.get(rule.code)
            marks = [pytest.mark.xfail(reason=reason, strict=False, raises=ConformanceError)] if reason else []
            identity = f"{name}-{rule.code}-{rule.name}"
            cases.append(pytest.param(subject.part, Check(subject, rule), id=identity, marks=marks))
    return pytest.mark.parametrize(("part", "check"), cases)


def judge(outcomes: list[Outcome], seed: int) -> None:
    """Raise where something was found, the expected too; skip where nothing could be decided."""
    if any(isinstance(outcome, Finding) for outcome in outcomes):
        raise ConformanceError(Report(outcomes, seed))
    for outcome in outcomes:
        if isinstance(outcome, NotChecked) and outcome.unfinished:
            raise ConformanceError(Report(outcomes, seed))
    undecided = [str(outcome) for outcome in outcomes if isinstance(outcome, NotChecked | NotRun)]
    if undecided and len(undecided) == len(outcomes):
        library("pytest").skip("; ".join(undecided))


def different(names: list[str]) -> list[str]:
    """The names, with a number behind those that come again."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(f"{name}-{seen[name]}" if seen[name] > 1 else name)
    return found
