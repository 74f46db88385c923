"""A part as a picture: its value and its gradient over the range of its input, one curve a setting.

The gradient is drawn as the backend gives it, and dotted over it as differences in float64 have it, so that a wrong one is
seen. Kinks are marked, jumps and what is not finite in red, and what the battery finds is written below. Matplotlib draws
into a figure of its own, with no window and nothing of its global state touched.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.checking.domains import draw
from kustom.checking.finding import Finding
from kustom.checking.making import parameters_of
from kustom.checking.optional import library
from kustom.checking.rules import load
from kustom.checking.runner import run
from kustom.checking.subjects import Subject, subjects_of
from kustom.errors import KustomError, UsageError, did_you_mean, hide_frames
from kustom.gradients.differences import EPSILON, Function
from kustom.gradients.tape import GradientTape

__all__ = ["Curve", "curve_of", "plot"]

DRAWN = ("loss", "activation", "regularizer", "initializer", "constraint")
# Of the curves, and of the points at which differences are taken.
_POINTS, _DOTS = 401, 41
_FANS = (256, 128)
# The input of a finding that stands at one place of the axis.
_ONE_INPUT = re.compile(r"(?:.*(?:\bat|=) )?(-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)")
_RED, _GREY = "#c0392b", "#888888"


@dataclasses.dataclass(frozen=True)
class Curve:
    """What is drawn of a function of one number.

    Attributes:
        x: Where, float64, the shape (points,).
        value: Its values.
        gradient: Its derivative, as the backend gives it.
        dots: Where differences were taken.
        numerical: The derivative by differences.
        kinks: Where the derivative jumps and the value does not.
        jumps: Where the value jumps.
    """

    x: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    dots: np.ndarray
    numerical: np.ndarray
    kinks: tuple[float, ...]
    jumps: tuple[float, ...]

    @property
    def broken(self) -> np.ndarray:
        """Where value or gradient is not finite."""
        return self.x[~(np.isfinite(self.value) & np.isfinite(self.gradient))]


@hide_frames
def plot(
    part: Any,
    *,
    settings: Mapping[str, Iterable[Any]] | None = None,
    domain: tuple[float, float] | None = None,
    findings: bool = True,
) -> Any:
    """Draw the value and the gradient of a part.

    A loss is drawn over the error, or where it takes probabilities over `y_pred` at a target of 1; an activation over its
    input, others at 0; a regularizer over one weight, with what a step of gradient descent makes of it; an initializer as a
    histogram of its draws, beside those of Glorot and He; a constraint by what becomes of weights.

    Args:
        part: A loss, activation, regularizer, initializer or constraint: an instance, a class or a function; or a list of them.
        settings: Values of one setting, a curve each: `{"threshold": [0.5, 1.0, 2.0]}`.
        domain: The range of the input, as two numbers.
        findings: Whether to run the battery's checks of numbers and gradients and to write what they find below.

    Returns:
        A `matplotlib.figure.Figure`: `savefig` writes it to a file, a notebook shows it.

    Raises:
        MissingLibraryError: Matplotlib is not installed.
        SubjectError: There is no such part, or it does not say how it is made.
        UsageError: The part is of a kind that has no such picture.

    Example:
        >>> import kustom
        >>> from kustom.textbook import HuberLoss
        >>> figure = kustom.plot(HuberLoss(), settings={"threshold": [0.5, 1.0, 2.0]}, findings=False)
        >>> [axes.get_title() for axes in figure.axes]
        ['value', 'gradient']
    """
    library("matplotlib")
    subjects = _subjects(part, settings)
    kinds = {subject.kind for subject in subjects}
    if len(kinds) != 1 or not kinds <= {*DRAWN}:
        raise UsageError(
            f"kustom.plot draws parts of one kind: {', '.join(DRAWN)}; {', '.join(s.name for s in subjects)} "
            f"{'is' if len(subjects) == 1 else 'are'} {' and '.join(sorted(kinds))}."
        )
    figure = _figure()()
    {"initializer": _initializers, "constraint": _constraints}.get(kinds.pop(), _curves)(figure, subjects, domain)
    names = dict.fromkeys(subject.name for subject in subjects)
    figure.suptitle(", ".join(names))
    if findings:
        _write_findings(figure, subjects)
    return figure


def _subjects(part: Any, settings: Mapping[str, Iterable[Any]] | None) -> list[Subject]:
    found = [s for each in (part if isinstance(part, list | tuple) else [part]) for s in subjects_of(each)]
    if settings is None:
        return found
    if len(settings) != 1 or len(found) != 1:
        raise UsageError("settings are the values of one setting of one part, such as {'threshold': [0.5, 1.0, 2.0]}.")
    ((name, values),) = settings.items()
    if found[0].is_function:
        return [_with_setting(found[0], name, value) for value in values]
    return [_made_with(found[0], name, value) for value in values]


def _made_with(subject: Subject, name: str, value: Any) -> Subject:
    try:
        return Subject(subject.make(**{name: value}), name=subject.name)
    except KustomError:
        raise
    except (TypeError, ValueError) as error:
        # A constructor's, which is anybody's.
        cls = subject.part if isinstance(subject.part, type) else type(subject.part)
        hint = did_you_mean(name, set(parameters_of(cls)) - {name})
        raise UsageError(f"{subject.name} cannot be made with {name}={value!r}: {error}.{hint}") from error


def _with_setting(subject: Subject, name: str, value: Any) -> Subject:
    """A plain function with a value for one of its parameters that have a default."""
    parameters = inspect.signature(subject.part).parameters.values()
    taken = [p.name for p in parameters if p.default is not p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if name not in taken:
        raise UsageError(f"{subject.name} has no setting {name!r}; it has {', '.join(taken) or 'none'}.{did_you_mean(name, taken)}")

    @functools.wraps(subject.part)
    def bound(*args: Any) -> Any:
        return subject.part(*args, **{name: value})

    return Subject(bound, kind=subject.kind, name=f"{subject.name}({name}={value})")


def _figure() -> Any:
    """A figure without a window, which a notebook shows all the same."""

    class Picture(library("matplotlib.figure").Figure):
        def __init__(self) -> None:
            super().__init__(figsize=(9.0, 3.6), layout="constrained")

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Picture


def _label(subject: Subject, among: list[Subject]) -> str:
    """What tells a part from the others: its settings, as it shows itself."""
    shown = repr(subject.part)
    return shown if len(among) > 1 and " at 0x" not in shown and len(shown) < 60 else subject.name


def curve_of(subject: Subject, domain: tuple[float, float] | None = None) -> tuple[Curve, str]:
    """The curve of a loss, activation or regularizer, and what its input is.

    Args:
        subject: The part.
        domain: The range of its input.
    """
    function, (low, high), label = _function_of(subject)
    low, high = domain or (low, high)
    x = np.linspace(low, high, _POINTS)
    with current().double_precision(), private.wide_floats():
        value, gradient = _both(function, x)
        dots = np.linspace(low, high, _DOTS)
        numerical = _differences(function, dots)
        kinks, jumps = _breaks(function, x, value, gradient)
    return Curve(x, value, gradient, dots, numerical, kinks, jumps), label


def _function_of(subject: Subject) -> tuple[Callable[[Any], Any], tuple[float, float], str]:
    """A part as a function of one number, for many at once; the range of it, and its name."""
    part = subject.instance()
    if subject.kind == "loss":
        of_values = part.call if isinstance(part, keras.losses.Loss) else part
        if subject.inputs.pair_domain()[1] in ("reals", "signs"):
            return lambda x: of_values(ops.zeros_like(x[:, None]), x[:, None]), (-4.0, 4.0), "error: y_pred − y_true"
        high = 4.0 if subject.inputs.pair_domain()[1] == "positive" else 0.999
        return lambda x: of_values(ops.ones_like(x[:, None]), x[:, None]), (0.001, high), "y_pred, where y_true is 1"
    if subject.kind == "activation":
        ends = (0.001, 6.0) if subject.tags.get("domain") == "positive" else (-6.0, 6.0)
        return lambda x: part(ops.pad(x[:, None], [[0, 0], [0, 2]]))[:, 0], ends, "input"
    return lambda x: ops.stack([part(ops.reshape(each, (1, 1))) for each in ops.unstack(x, x.shape[0])]), (-2.0, 2.0), "weight"


def _both(function: Callable[[Any], Any], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inputs = ops.convert_to_tensor(x, dtype="float64")
    with GradientTape() as tape:
        tape.watch(inputs)
        values = function(inputs)
        # Each value depends on its own input alone, so that the gradient of the sum is that of each.
        total = ops.sum(values)
    gradient = tape.gradient(total, inputs, unconnected_gradients="zero")
    return _array(values), _array(gradient)


def _array(x: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(x), "float64").reshape(-1)


def _differences(function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """Central differences, each point with the step at which its two errors are alike."""
    made = Function(function, (x,))
    epsilon = EPSILON[made.precision()]
    step = epsilon ** (1 / 3) * np.maximum(1.0, np.abs(x))
    with np.errstate(invalid="ignore"):
        return (made([x + step])[0] - made([x - step])[0]).reshape(-1) / (2 * step)


def _breaks(
    function: Callable[[Any], Any], x: np.ndarray, value: np.ndarray, gradient: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Where the derivative or the value jumps: steps that are much larger than those beside, halved until they are points."""
    with np.errstate(invalid="ignore"):
        steps = np.stack([np.abs(np.diff(gradient)), np.abs(np.diff(value)) / (x[1] - x[0])])
    usual = np.nanmedian(np.where(np.isfinite(steps), steps, np.nan), axis=1, keepdims=True)
    suspects = np.flatnonzero(np.any(np.isfinite(steps) & (steps > 4 * usual + 1e-6), axis=0))[:40]
    if not suspects.size:
        return (), ()
    low, high = (np.stack([points, *_both(function, points)]) for points in (x[suspects], x[suspects + 1]))
    for _ in range(24):
        points = (low[0] + high[0]) / 2
        middle = np.stack([points, *_both(function, points)])
        with np.errstate(invalid="ignore"):
            before, after = (np.abs(b[2] - a[2]) + np.abs(b[1] - a[1]) / (b[0] - a[0]) for a, b in ((low, middle), (middle, high)))
        low, high = np.where(before >= after, low, middle), np.where(before >= after, middle, high)
    rise, bend = np.abs(high[1:] - low[1:])
    jumps = rise > 1e-4 * max(1.0, float(np.nanmax(np.abs(value))))
    kinks = ~jumps & (bend > 1e-3 * max(1.0, float(np.nanmax(np.abs(gradient)))))
    return _apart(low[0][kinks], x), _apart(low[0][jumps], x)


def _apart(places: np.ndarray, x: np.ndarray) -> tuple[float, ...]:
    """The places, those that were come upon from both sides once."""
    found: list[float] = []
    for place in np.sort(places):
        if not found or place - found[-1] > (x[1] - x[0]) / 2:
            found.append(round(float(place), 6))
    return tuple(found)


def _curves(figure: Any, subjects: list[Subject], domain: tuple[float, float] | None) -> None:
    of_weights = subjects[0].kind == "regularizer"
    panels = figure.subplots(1, 3 if of_weights else 2)
    for axes, title in zip(panels, ("value", "gradient", "after a step of 0.1"), strict=False):
        axes.set_title(title)
    for subject in subjects:
        curve, label = curve_of(subject, domain)
        (line,) = panels[0].plot(curve.x, curve.value, label=_label(subject, subjects))
        panels[1].plot(curve.x, curve.gradient, color=line.get_color())
        sound = np.all(np.abs(curve.dots[:, None] - np.array([*curve.jumps, *curve.kinks, np.inf])) > 1e-3, axis=1)
        panels[1].plot(curve.dots[sound], curve.numerical[sound], ".", color="black", markersize=3, zorder=3)
        for place in curve.kinks:
            panels[1].axvline(place, color=_GREY, linestyle=":", linewidth=1)
        for place in curve.jumps:
            panels[0].axvline(place, color=_RED, linestyle="--", linewidth=1)
        for axes in panels[:2]:
            if curve.broken.size:
                axes.plot(curve.broken, np.zeros_like(curve.broken), "x", color=_RED, markersize=3)
            axes.set_xlabel(label)
        if of_weights:
            panels[2].plot(curve.x, curve.x - 0.1 * curve.gradient, color=line.get_color())
            panels[2].plot(curve.x, curve.x, color=_GREY, linestyle=":", linewidth=1)
            panels[2].set_xlabel("weight before")
    # The dots mark what they agree with; across a jump a difference is of no derivative.
    panels[1].lines[1].set_label("by differences")
    panels[1].legend(frameon=False, fontsize="small")
    if len(subjects) > 1:
        panels[0].legend(frameon=False, fontsize="small")


def _initializers(figure: Any, subjects: list[Subject], domain: tuple[float, float] | None) -> None:
    axes = figure.subplots()
    fan_in, fan_out = _FANS
    expected = {"Glorot": (2 / (fan_in + fan_out)) ** 0.5, "He": (2 / fan_in) ** 0.5}
    drawn = [_array(subject.instance()(_FANS, dtype="float32")) for subject in subjects]
    reach = max(4 * max(expected.values()), *(float(np.percentile(np.abs(x), 99.9)) for x in drawn))
    low, high = domain or (-reach, reach)
    for subject, x in zip(subjects, drawn, strict=True):
        named = f"{_label(subject, subjects)}: standard deviation {x.std():.4g}"
        axes.hist(x, bins=np.linspace(low, high, 121), density=True, histtype="step", label=named)
    grid = np.linspace(low, high, _POINTS)
    for (name, deviation), style in zip(expected.items(), ("--", ":"), strict=True):
        density = np.exp(-0.5 * (grid / deviation) ** 2) / (deviation * (2 * np.pi) ** 0.5)
        axes.plot(grid, density, style, color=_GREY, label=f"{name}: {deviation:.4g}")
    axes.set_title(f"{fan_in} × {fan_out} draws")
    axes.set_xlabel("weight")
    axes.legend(frameon=False, fontsize="small")


def _constraints(figure: Any, subjects: list[Subject], domain: tuple[float, float] | None) -> None:
    low, high = domain or (-3.0, 3.0)
    before = draw((low, high), np.random.default_rng(0), (2, 60))
    panels = figure.subplots(1, 2)
    panels[0].set_title("columns of two weights, before and after")
    panels[0].plot(*before, ".", color=_GREY, markersize=4)
    panels[1].set_title("norm of a column")
    norms = np.linalg.norm(before, axis=0)
    panels[1].plot([0, norms.max()], [0, norms.max()], color=_GREY, linestyle=":", linewidth=1)
    for subject in subjects:
        after = ops.convert_to_numpy(subject.instance()(ops.convert_to_tensor(before)))
        (line,) = panels[0].plot(*after, ".", markersize=5, label=_label(subject, subjects))
        panels[0].plot(np.stack([before[0], after[0]]), np.stack([before[1], after[1]]), color=line.get_color(), linewidth=0.4)
        panels[1].plot(norms, np.linalg.norm(after, axis=0), ".", color=line.get_color())
    panels[0].set_aspect("equal")
    panels[1].set_xlabel("before")
    if len(subjects) > 1:
        panels[0].legend(frameon=False, fontsize="small")


def _write_findings(figure: Any, subjects: list[Subject]) -> None:
    """Below the picture, what the battery's cheap checks of numbers and gradients say; where it is at one input, a red line."""
    found: dict[str, Finding] = {}
    codes = [code for code, rule in load().items() if rule.family in ("N", "G") and rule.where == "here"]
    for subject in subjects:
        for finding in run(subject, only=codes).findings:
            found.setdefault(f"{finding.code}  {finding.message}", finding)
    for finding in found.values():
        one = _ONE_INPUT.fullmatch(finding.input)
        place = float(one[1]) if one else np.inf
        for axes in figure.axes:
            low, high = axes.get_xlim()
            if low <= place <= high:
                axes.axvline(place, color=_RED, linewidth=1)
    if found:
        figure.supxlabel("\n".join(text[:140] for text in list(found)[:6]), color=_RED, fontsize="small", ha="left", x=0.02)
