"""Family G, gradients: against differences in float64, at ordinary points and at the ends, down to each variable.

The comparison itself is `kustom.check_gradient`'s: whole Jacobians where they are small, a verdict by how the differences
come together, kinks told apart. Here is what it is asked of: a function of the inputs alone, or of the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from kustom.checking import calls, doubles, steadiness
from kustom.checking.domains import ENDS, INTEGERS
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import DIFFERENTIABLE, rule
from kustom.checking.rules.backends import failed, one_line
from kustom.checking.subjects import Subject, tensor_text
from kustom.errors import GradientError, SubjectError
from kustom.gradients.numerical import GradientReport, check_gradient
from kustom.gradients.tape import GradientTape
from kustom.gradients.transforms import grad

# How many points are looked at: where all entries of one are kinks, the next may have none. A model is made of layers, each
# of which has its own check, and costs as much as all of them.
POINTS, POINTS_OF_A_MODEL = 2, 1
# Of the second order.
_DIRECTIONS = 3


@rule(
    "G201",
    kinds=DIFFERENTIABLE,
    asserts="The gradient equals finite differences.",
    why="Training follows the gradient: one that is wrong trains something else, or nothing, and nobody sees why.",
    example="""
        @kustom.custom_gradient
        def my_softplus(z):
            return ops.softplus(z), lambda upstream: upstream * ops.exp(z) / (1 + ops.exp(z)) ** 2
    """,
    mend="Take the formula's own derivative, without rounding, argmax or a round trip through NumPy on the way; say so where it is "
    "another on purpose: __kustom__ = {'expected_failures': {'G201': 'straight through'}}.",
    needs=("B601",),
)
def gradient_equals_differences(subject: Subject) -> Iterator[Measured | Undecided]:
    """By each floating input, and for a layer by its trainable weights, at a few points."""
    if subject.tagged("no_gradient"):
        yield Undecided("it is declared not to be differentiated")
        return
    if steadiness.draws(subject):
        yield Undecided("it draws random numbers, or gives something else at each call")
        return
    rng = subject.rng("G201")
    kinks = 0
    points = POINTS_OF_A_MODEL if subject.kind == "model" else POINTS
    for _ in range(points):
        try:
            report = _report(subject, rng)
        except Exception as error:
            # Whatever a part raises that ran without a gradient, such as a trip through NumPy.
            yield _without_gradient(subject, error, "it cannot be differentiated")
            return
        if isinstance(report, Undecided):
            yield report
            return
        if _is_wrong(report):
            yield _wrong(subject, report)
            return
        kinks += report.kinks == report.compared
    if kinks == points:
        yield Undecided("every point that was tried is a kink")


def _without_gradient(subject: Subject, error: Exception, what: str) -> Measured | Undecided:
    """What a failure while differentiating is; of an operation of the backend's own it is the backend's word."""
    if any(said in str(error) for said in ("not implemented", "not differentiable", "gradient registry has no entry")):
        return Undecided(one_line(error))
    return failed(subject, error, what)


def _report(subject: Subject, rng: np.random.Generator) -> GradientReport | Undecided:
    try:
        with doubles.part(subject) as (part, args):
            function = doubles.Along(subject, part, args, rng)
            if not function.starts:
                return Undecided("nothing that it is called with can be differentiated by")
            return check_gradient(function, *function.starts, on_fail=None)
    except (GradientError, SubjectError) as error:
        return Undecided(one_line(error))


def _is_wrong(report: GradientReport) -> bool:
    """Where something inside computes in float32, differences are noise on top of noise: they must be off by more."""
    if report.rows and not any(np.isfinite(row.difference) for row in report.rows):
        # Where the value itself is not finite there is no difference, and N301 says so.
        return False
    if report.notes and not report.notes[0].startswith("Nothing was compared"):
        return True
    # A constant that is kept in float32, such as a sixth, is no fault.
    forgiven = 1e-6 if report.precision == "float64" else 5e-3
    largest = max((abs(row.difference) for row in report.rows if np.isfinite(row.difference)), default=0.0)
    failures = [row for row in report.failures if np.isfinite(row.difference)]
    return any(not abs(row.gradient - row.difference) <= row.allowed + forgiven * largest for row in failures)


def _wrong(subject: Subject, report: GradientReport, what: str = "gradient") -> Measured:
    if not report.failures:
        return Measured(report.notes[0], got=report.notes[0], expected="a gradient that is linear in what comes from above")
    row = max(report.failures, key=lambda each: abs(each.gradient - each.difference) / each.allowed)
    return Measured(
        f"the {what} is {shown(row.gradient)}, differences give {shown(row.difference)}",
        input=row.where,
        got=f"{shown(row.gradient)} (the backend's)",
        expected=f"{shown(row.difference)}, give or take {row.allowed:.1e} (differences in {report.precision})",
        reproducer=subject.reproducer(
            "import kustom",
            "print(kustom.check_gradient(lambda p: part(y_true, p), y_pred, on_fail=None))"
            if subject.kind in ("loss", "metric")
            else "print(kustom.check_gradient(part, *x, on_fail=None))"
            if subject.kind in ("layer", "model") and len(subject.inputs.arguments()) > 1
            else "print(kustom.check_gradient(part, x, on_fail=None))",
        ),
    )


@rule(
    "G202",
    kinds=DIFFERENTIABLE,
    asserts="The gradient is finite wherever the value is: at 0, at tiny, at large and at equal inputs.",
    why="One NaN in one gradient makes every weight NaN at the next step, at the one sample that happens to hit it.",
    example="""
        def distance(y_true, y_pred):
            return ops.sqrt(ops.sum(ops.square(y_true - y_pred), axis=-1))   # infinite slope at y_true = y_pred
    """,
    mend="Keep the dangerous branch away from the bad point itself: choose a safe input with ops.where before the sqrt, log or "
    "division, not after it; or add a small constant inside.",
    needs=("B601",),
)
def gradient_is_finite(subject: Subject) -> Iterator[Measured | Undecided]:
    """At the points where formulas break, in float32, as training computes."""
    if subject.tagged("no_gradient"):
        yield Undecided("it is declared not to be differentiated")
        return
    instance = subject.instance()
    for name, args in itertools.chain(extremes(subject), ends(subject)):
        try:
            value, gradients = _value_and_gradients(subject, instance, args)
        except Exception as error:
            # Of what cannot be differentiated at all G201 speaks.
            yield Undecided(f"its gradient fails {name}: {one_line(error)}")
            return
        if not all(np.all(np.isfinite(v)) for v in value):
            continue
        for gradient, x in zip(gradients, [x for x in calls.flat(args) if _is_float(x)], strict=True):
            if gradient is not None and not np.all(np.isfinite(gradient)):
                at = int(np.argmax(~np.isfinite(gradient)))
                yield Measured(
                    f"the gradient is {shown(float(gradient.flat[at]))} {name}, where the value is {shown(_first(value))}",
                    input=shown(np.asarray(x).flat[at]),
                    got=shown(float(gradient.flat[at])),
                    expected="a finite number",
                    reproducer=subject.reproducer(
                        "import kustom",
                        f"x = {tensor_text(np.asarray(x).astype('float32'))}",
                        f"print(kustom.grad(lambda x: keras.ops.sum(part({_spelled(args)})))(x))",
                    ),
                )
                return


def _spelled(args: tuple[Any, ...]) -> str:
    floats = [i for i, x in enumerate(args) if _is_float(x)]
    return ", ".join("x" if not floats or i == floats[-1] else tensor_text(x) for i, x in enumerate(args))


def _first(value: list[np.ndarray]) -> float:
    return float(np.mean(value[0])) if value and value[0].size else 0.0


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def extremes(subject: Subject) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Arguments at which formulas break, each with what it is called; all of them in the part's domain."""
    args = subject.inputs.arguments()
    domain = subject.inputs.domain
    if subject.kind == "loss":
        yield from _of_a_loss(subject, args)
        return
    if not all(_is_float(x) for x in calls.flat(args)):
        return
    for x in (0.0, 1e-20, -1e-20, 1.0, -1.0, 100.0, -100.0):
        name = f"at {x:g}"
        if domain is None or _contains(domain, x):
            yield name, calls.mapped(lambda a, x=x: np.full_like(a, x), args)
    flat = calls.mapped(lambda a: np.broadcast_to(a[:1], a.shape).copy() if a.ndim else a, args)
    yield "where all samples are equal", flat


def _contains(domain: Any, x: float) -> bool:
    if isinstance(domain, tuple | list):
        return domain[0] <= x <= domain[1]
    return {
        "positive": x > 0,
        "unit": 0 <= x <= 1,
        "probabilities": 0 <= x <= 1,
        "ids": False,
        "signs": abs(x) == 1,
    }.get(domain, True)


def _of_a_loss(subject: Subject, args: tuple[Any, ...]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    y_true, y_pred = args
    if subject.inputs.user_given:
        yield "at the inputs that were given", args
        return
    true_domain, pred_domain, _ = subject.inputs.pair_domain()
    same = true_domain == pred_domain and y_true.shape == y_pred.shape
    if same:
        yield "at y_pred = y_true", (y_true, y_true.copy())
    if same and subject.inputs.takes_zeros():
        zeros = np.zeros_like(y_true)
        yield "at y_true = y_pred = 0", (zeros, zeros.copy())
    if pred_domain == "reals":
        for name, x in {
            "at y_pred = 0": 0.0,
            "at y_pred = 30": 30.0,
            "at y_pred = 100": 100.0,
            "at y_pred = -100": -100.0,
            "at y_pred = 1e-20": 1e-20,
        }.items():
            yield name, (y_true, np.full_like(y_pred, x))
    elif isinstance(pred_domain, str) and pred_domain in ("probabilities", "unit"):
        # What a softmax or sigmoid gives when it is sure: exactly 0 and 1.
        sure = np.zeros_like(y_pred)
        sure[..., 0] = 1.0
        yield "at probabilities of exactly 0 and 1", (y_true, sure)


def ends(subject: Subject) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Where targets, or targets and predictions, are at the ends of their domain: one-hot, and right and sure."""
    if subject.kind not in ("loss", "metric") or subject.inputs.user_given or not subject.inputs.has_ends():
        return
    y_true, y_pred = subject.inputs.arguments()
    true_domain, pred_domain, _ = subject.inputs.pair_domain()
    low, high = ENDS[pred_domain] if isinstance(pred_domain, str) else pred_domain
    hot = np.arange(len(y_pred)) % y_pred.shape[-1]
    sure = np.where(np.eye(y_pred.shape[-1])[hot] > 0, high, low).astype(y_pred.dtype)
    one_hot = hot.astype(y_true.dtype) if true_domain in INTEGERS else sure.copy()
    which = "one-hot" if (low, high) == (0, 1) else f"{low:g} and {high:g}"
    yield f"where y_true is {which}", (one_hot, y_pred)
    yield f"where y_true and y_pred are the same, {which}", (one_hot, sure)


def _value_and_gradients(
    subject: Subject, instance: Any, args: tuple[Any, ...]
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    given = calls.tensors(args)
    watched = [x for x in calls.flat(given) if calls.is_floating(x)]
    with GradientTape(persistent=True) as tape:
        tape.watch(watched)
        # Copies, as a layer is given what another computed: one that writes in place may do so with a result, not with a leaf.
        copied = calls.mapped(lambda x: ops.copy(x) if ops.is_tensor(x) and calls.is_floating(x) else x, given)
        made = calls.call_on_tensors(subject, instance, copied)
        outputs = [y for y in calls.flat(made) if ops.is_tensor(y) and calls.is_floating(y)]
        total = sum((ops.sum(y) for y in outputs[1:]), ops.sum(outputs[0])) if outputs else ops.zeros(())
    gradients = tape.gradient(total, watched)
    return calls.floats(outputs), [None if g is None else np.asarray(calls.arrays(g), "float64") for g in gradients]


@rule(
    "G203",
    kinds=("layer", "model"),
    asserts="Every trainable variable, those of sublayers included, gets a gradient and moves in fit.",
    why="A weight that never moves is a weight that was meant to be learnt, and the loss still falls.",
    example="""
        def call(self, x):
            return self.out(keras.ops.stop_gradient(self.hidden(x)))
    """,
    mend="Find where the gradient ends (stop_gradient, rounding, NumPy, a weight that call never reads), or make the weight "
    "trainable=False.",
    needs=("B601",),
)
def every_variable_learns(subject: Subject) -> Iterator[Measured | Undecided]:
    """A loss of random weights of the outputs has a gradient for each, and one step of SGD moves it."""
    if subject.tagged("no_gradient"):
        yield Undecided("it is declared not to be differentiated")
        return
    args = subject.inputs.arguments(batch=6)
    part = doubles.copy_or_itself(subject)
    calls.call(subject, part, *args)
    rng = subject.rng("G203")
    calls.moved(part, rng)
    variables = list(part.trainable_variables)
    if not variables:
        return
    missing = {v.path for v in variables}
    for _ in range(3):
        given = calls.tensors(subject.inputs.arguments(batch=6, rng=rng))
        with GradientTape() as tape:
            outputs = calls.flat(calls.call_on_tensors(subject, part, given, training=True))
            terms = [
                ops.sum(y * ops.convert_to_tensor(rng.normal(size=y.shape).astype("float32")))
                for y in outputs
                if calls.is_floating(y)
            ]
            if not terms:
                yield Undecided("its outputs are not floating numbers")
                return
            # A weight that only an added loss reads learns by that.
            total = sum([*terms[1:], *part.losses], terms[0])
        for v, g in zip(variables, tape.gradient(total, variables), strict=True):
            if g is not None and np.any(calls.arrays(g) != 0):
                missing.discard(v.path)
    if missing:
        names = ", ".join(sorted(missing))
        yield Measured(
            f"no gradient reaches {names}",
            got="no gradient, or one that is always 0",
            expected=f"a gradient for each of {len(variables)} trainable variables",
            reproducer=subject.reproducer(
                "import kustom",
                "with kustom.GradientTape(persistent=True) as tape: loss = keras.ops.sum(part(x, training=True) ** 2)",
                "print([v.path for v in part.trainable_variables if tape.gradient(loss, v) is None])",
            ),
        )


@rule(
    "G204",
    kinds=("activation", "loss", "layer", "regularizer"),
    asserts="A custom gradient has the right second order, too.",
    why="A gradient penalty or a Hessian differentiates the gradient; where that is cut off, it is silently 0.",
    example="""
        @kustom.custom_gradient
        def square(x):
            slope = keras.ops.convert_to_tensor(2 * np.asarray(x))     # a number, not a function of x
            return x * x, lambda upstream: upstream * slope
    """,
    mend="Compute the gradient by keras.ops from the argument itself, so that it can be differentiated again.",
    needs=("G201",),
)
def second_order_equals_differences(subject: Subject) -> Iterator[Measured | Undecided]:
    """The gradient of the gradient against differences of the gradient."""
    if subject.tagged("no_gradient"):
        yield Undecided("it is declared not to be differentiated")
        return
    try:
        with doubles.part(subject) as (part, args):
            # Along few directions, since each value is a gradient: a wrong entry shows in almost every one.
            function = doubles.Along(subject, part, args, subject.rng("G204"), most=_DIRECTIONS)
            if "inputs" not in function.names:
                return
            others = [ops.convert_to_tensor(start) for start in function.starts[1:]]

            def slope(x: Any) -> Any:
                # Of the sine of the value, whose second derivative is not 0 where the value is linear.
                found = grad(lambda y: ops.sum(ops.sin(function(y, *others))))(x)
                return ops.zeros_like(x) if found is None else found

            report = check_gradient(slope, function.starts[0], on_fail=None)
    except (GradientError, SubjectError) as error:
        yield Undecided(one_line(error))
        return
    except Exception as error:
        # Whatever a gradient raises that cannot be differentiated again.
        yield _without_gradient(subject, error, "its gradient cannot be differentiated")
        return
    if _is_wrong(report):
        yield _wrong(subject, report, "second derivative")
