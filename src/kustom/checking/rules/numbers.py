"""Family N, numbers: at the ends of the domain, beside thresholds, and in low precision.

What float32 cannot hold is nobody's fault: a result that is not finite counts where the same formula in float64 gives a
number that float32 could have held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from keras import ops

from kustom.checking import calls, doubles, steadiness, varying
from kustom.checking.domains import draw
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import rule
from kustom.checking.rules.gradients import ends, extremes
from kustom.checking.subjects import Subject, policy, tensor_text

FLOAT32_MAX = 3.0e38


@rule(
    "N301",
    kinds=("loss", "metric", "layer", "model", "activation", "regularizer", "constraint"),
    asserts="It is finite at extreme but legal inputs.",
    why="One value that is infinite or NaN makes the loss, and after one step every weight, NaN.",
    example="""
        def my_softplus(z):
            return ops.log(ops.exp(z) + 1)
    """,
    mend="Write it so that nothing on the way overflows or divides by 0: ops.logaddexp, ops.logsumexp, ops.log1p, "
    "ops.divide_no_nan, a small constant that the dtype can hold.",
    needs=("B601",),
)
def finite_at_extremes(subject: Subject) -> Iterator[Measured | Undecided]:
    """At 0, tiny, large and equal inputs, of either sign."""
    for name, args in _points(subject):
        got = _outputs(subject, subject.instance(), args)
        if all(np.all(np.isfinite(y)) for y in got):
            continue
        reference = _in_doubles(subject, args)
        if reference is None:
            yield Undecided("it does not compute in float64, so that nothing tells whether float32 could hold the result")
            return
        for y, right in zip(got, reference, strict=True):
            held = np.isfinite(right) & (np.abs(right) < FLOAT32_MAX)
            # At 0 itself and at equal inputs no overflow excuses a NaN: float64 gives it, too.
            bad = ~np.isfinite(y) & (held | (np.isnan(y) & np.isnan(right) & ("100" not in name)))
            if np.any(bad):
                at = int(np.argmax(bad))
                expected = right.flat[at]
                yield Measured(
                    f"the result is {shown(float(y.flat[at]))} {name}",
                    input=name,
                    got=shown(float(y.flat[at])),
                    expected=shown(float(expected)) if np.isfinite(expected) else "a finite number",
                    reproducer=subject.reproducer(
                        f"print(part({', '.join(tensor_text(x) for x in args if isinstance(x, np.ndarray))}))"
                    ),
                )
                return


def _points(subject: Subject) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if subject.kind == "metric":
        if subject.inputs.user_given or subject.is_function:
            return
        y_true = subject.inputs.arguments()[0]
        true_domain, pred_domain, _ = subject.inputs.pair_domain()
        if true_domain == pred_domain == "reals" and not _level_is_nothing(subject):
            # Of a list without a relevant item, of the direction of nothing.
            yield "at y_true = 0", (np.zeros_like(y_true), subject.inputs.arguments()[1])
        if true_domain == pred_domain == "reals" and not scale_is_nothing(subject):
            zeros = np.zeros_like(y_true)
            yield "at y_true = y_pred = 0", (zeros, zeros.copy())
            yield "at y_pred = y_true", (y_true, y_true.copy())
        yield from ends(subject)
        return
    yield from extremes(subject)
    yield from ends(subject)
    if subject.kind in ("activation", "loss"):
        args = subject.inputs.arguments()
        for x in (1e4, -1e4):
            if (
                subject.inputs.domain is None
                and not subject.inputs.user_given
                and (subject.kind == "activation" or subject.inputs.pair_domain()[1] == "reals")
            ):
                yield f"at {x:g}", (*args[:-1], np.full_like(args[-1], x))


def _level_is_nothing(subject: Subject) -> bool:
    """Whether a metric is of how targets vary, as a correlation is, so that of equal ones it has no value."""
    y_true, y_pred = subject.inputs.arguments()
    ours, theirs = (calls.outputs_of(subject, subject.instance(), x, y_pred) for x in (y_true, y_true + 1.0))
    return calls.same(ours, theirs, units=512.0)


def scale_is_nothing(subject: Subject) -> bool:
    """Whether a loss is of directions or shares alone, so that predictions of 0 have no value."""

    def find() -> bool:
        y_true, y_pred = subject.inputs.arguments()
        ours, theirs = (calls.outputs_of(subject, subject.instance(), y_true, x) for x in (y_pred, 2 * y_pred))
        return y_pred.dtype.kind == "f" and calls.same(ours, theirs)

    return subject.once("scale", find)


def _outputs(subject: Subject, instance: Any, args: tuple[Any, ...]) -> list[np.ndarray]:
    return [np.asarray(y, "float64") for y in calls.outputs_of(subject, instance, *args) if np.asarray(y).dtype.kind in "fV"]


def _in_doubles(subject: Subject, args: tuple[Any, ...]) -> list[np.ndarray] | None:
    wide = calls.mapped(lambda x: x.astype("float64") if np.asarray(x).dtype.kind == "f" else x, args)
    try:
        with doubles.part(subject) as (part, _):
            if subject.kind in ("layer", "model"):
                calls.cloned_weights(subject.instance(), part)
            return _outputs(subject, part, wide)
    except Exception:
        # A part that mixes dtypes, or a backend without a kernel.
        return None


@rule(
    "N302",
    kinds=("loss", "activation"),
    asserts="It has no jump: it is continuous along random lines, for each of its settings.",
    why="At a jump the loss changes without a slope that would say so: usually one branch of a formula is miswritten.",
    example="""
        linear = threshold * ops.abs(error) - threshold * 2 * 0.5     # threshold**2 / 2 is right
        return ops.where(ops.abs(error) < threshold, ops.square(error) / 2, linear)
    """,
    mend="Make the branches equal where they meet.",
    needs=("B601",),
)
def has_no_jump(subject: Subject) -> Iterator[Measured | Undecided]:
    """As it is, and with each number among its settings varied."""
    parts = [("", subject.instance())]
    if not subject.is_function:
        parts += [(f" with {name} = {shown(value)}", made) for name, (value, made) in varying.all_varied(subject).items()]
    for which, part in parts:
        for line, spelled in _lines(subject):
            found = _jump(lambda t, part=part, line=line: _along(subject, part, line, t))
            if found:
                at, before, after = found
                yield Measured(
                    f"it jumps from {shown(before)} to {shown(after)} at {spelled(at)}{which}",
                    input=f"{spelled(at)}{which}",
                    got=f"{shown(before)} to {shown(after)}",
                    expected="no jump",
                    reproducer=subject.reproducer(f"# {spelled(at - 1e-6)} and {spelled(at + 1e-6)}: {before:.6g}, {after:.6g}"),
                )
                return


Line = Callable[[np.ndarray], tuple[Any, ...]]


def _lines(subject: Subject) -> Iterator[tuple[Line, Callable[[float], str]]]:
    """Lines in the domain, each a function of numbers from -6 to 6 that gives a row of arguments a number."""
    rng = subject.rng("N302")
    if subject.kind == "activation":
        domain = subject.inputs.domain
        low, high = domain if isinstance(domain, tuple | list) else (-6.0, 6.0)
        yield lambda t: (np.repeat((low + (t + 6) / 12 * (high - low))[:, None], 2, axis=1),), lambda t: f"x = {t:.5g}"
        others = rng.normal(size=3)
        yield lambda t: (np.concatenate([t[:, None], np.tile(others, (len(t), 1))], axis=1),), lambda t: f"x[0] = {t:.5g}"
        return
    if subject.inputs.user_given:
        y_true, y_pred = (np.asarray(x) for x in subject.inputs.arguments(batch=1))
        if y_pred.ndim == 2 and y_pred.dtype.kind == "f":
            step = rng.normal(size=y_pred.shape[1:])
            yield (
                lambda t: (np.repeat(y_true, len(t), axis=0), y_pred + t.reshape(-1, 1) * step / 6),
                lambda t: f"y_pred moved by {t / 6:.5g} along a direction",
            )
        return
    true_domain, pred_domain, sparse = subject.inputs.pair_domain()
    for columns in (1, 3):
        # A share or a direction of one number is a constant, or a sign.
        if columns == 1 and (sparse or scale_is_nothing(subject)):
            continue
        target = draw(true_domain, rng, (1,) if sparse else (1, columns))
        if not sparse and true_domain == "reals" and columns == 1:
            target = np.zeros((1, 1), "float32")
        step = rng.normal(size=(1, columns)) if columns > 1 else np.ones((1, 1))
        # Aside of 0, where a direction has no value.
        aside = rng.normal(size=(1, columns)) if columns > 1 else np.zeros((1, 1))
        yield (
            lambda t, target=target, step=step, aside=aside: (
                np.repeat(target, len(t), axis=0),
                _into(pred_domain, t.reshape(-1, 1) * step + aside),
            ),
            lambda t: f"y_pred - y_true = {t:.5g}" if true_domain == "reals" else f"{t:.5g} along a line",
        )


def _into(domain: Any, z: np.ndarray) -> np.ndarray:
    if domain == "probabilities" and z.shape[1] > 1:
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    if domain in ("unit", "probabilities"):
        return 1 / (1 + np.exp(-z))
    if domain == "positive":
        return np.exp(z / 2)
    if isinstance(domain, tuple | list):
        return domain[0] + (domain[1] - domain[0]) / (1 + np.exp(-z))
    return z


def _along(subject: Subject, part: Any, line: Line, t: np.ndarray) -> np.ndarray | None:
    """The part's value at each number, one row each; None where it gives none a row."""
    args = tuple(x.astype("float32") if x.dtype.kind == "f" else x for x in line(t))
    try:
        got = calls.outputs_of(subject, part, *args)[0].astype("float64")
    except Exception:
        # One that refuses a single column, or a domain that was guessed, says nothing of jumps.
        return None
    if got.ndim == 0 or got.shape[0] != len(t):
        return None
    return got.reshape(len(t), -1)


def _jump(value: Callable[[np.ndarray], np.ndarray | None]) -> tuple[float, float, float] | None:
    """Where two close numbers keep values apart however close they come."""
    t = np.linspace(-6.0, 6.0, 1201)
    y = value(t)
    if y is None or not np.all(np.isfinite(y)):
        return None
    steps = np.max(np.abs(np.diff(y, axis=0)), axis=1)
    for index in np.argsort(steps)[::-1][:3]:
        low, high = t[index], t[index + 1]
        size = steps[index]
        typical = float(np.median(steps))
        if size <= 3 * typical + 1e-6:
            continue
        last, before, after = size, y[index], y[index + 1]
        for _ in range(4):
            fine = np.linspace(low, high, 9)
            z = value(fine)
            if z is None:
                return None
            inner = np.max(np.abs(np.diff(z, axis=0)), axis=1)
            k = int(np.argmax(inner))
            low, high, last = fine[k], fine[k + 1], inner[k]
            before, after = z[k], z[k + 1]
        scale = max(float(np.max(np.abs(y))), 1e-3)
        # The interval is 1/4096 of what it was; a slope would have fallen with it.
        if last > 0.3 * size and last > 1e-4 * scale:
            at = int(np.argmax(np.abs(after - before)))
            return float((low + high) / 2), float(before[at]), float(after[at])
    return None


@rule(
    "N303",
    kinds=("loss", "regularizer"),
    asserts="It is never negative where it claims to be a distance, and 0 where y_pred = y_true.",
    why="A distance that is negative rewards what it should punish: training runs away from the targets.",
    example="""
        def call(self, y_true, y_pred):
            return ops.mean(y_true - y_pred, axis=-1)       # the sign of the error is kept
    """,
    mend="Take the absolute value or the square of the error before averaging.",
    needs=("B601",),
)
def distances_are_not_negative(subject: Subject) -> Iterator[Measured | Undecided]:
    """It claims to be one where it is 0 at equality, whatever the targets; or by the tag `distance`."""
    part = subject.instance()
    rng = subject.rng("N303")
    if subject.kind == "regularizer":
        x = rng.normal(size=(5, 4)).astype("float32")
        if calls.outputs_of(subject, part, x)[0].size != 1:
            yield Undecided("it returns no single number: see S206")
            return
        at_zero = float(calls.outputs_of(subject, part, np.zeros_like(x))[0])
        if subject.tagged("distance") and abs(at_zero) > 1e-6:
            yield Measured(f"of weights that are 0 it is {shown(at_zero)}", got=shown(at_zero), expected="0")
        lowest = min(float(calls.outputs_of(subject, part, sign * x)[0]) for sign in (1.0, -1.0, 0.1, -3.0))
        if (abs(at_zero) <= 1e-6 or subject.tagged("distance")) and lowest < -1e-6:
            yield Measured(
                f"it is {shown(lowest)} for some weights: it rewards them",
                got=shown(lowest),
                expected="0 or more",
                reproducer=subject.reproducer("print(part(w), part(-w))"),
            )
        return
    if subject.inputs.user_given:
        return
    several = [(name, name, False) for name in ("reals", "unit", "probabilities")]
    domains = [subject.inputs.pair_domain()] if subject.inputs.domain is not None else several
    negative: list[float] = []
    for true_domain, pred_domain, _ in domains:
        if true_domain != pred_domain:
            return
        y_true, y_pred = draw(true_domain, rng, (32, 4)), draw(pred_domain, rng, (32, 4))
        try:
            zero = calls.outputs_of(subject, part, y_true, y_true.copy())[0]
            values = calls.outputs_of(subject, part, y_true, y_pred)[0]
        except Exception:
            # It takes other domains; B601 has found one.
            return
        if not np.all(np.isfinite(values)) or not np.all(np.isfinite(zero)):
            continue
        scale = max(float(np.max(np.abs(values))), 1e-6)
        if subject.tagged("distance") and np.max(np.abs(zero)) > 1e-5 * scale:
            yield Measured(
                f"at y_pred = y_true it is {shown(float(np.max(np.abs(zero))))}",
                got=shown(float(np.max(np.abs(zero)))),
                expected="0",
            )
            return
        if not subject.tagged("distance") and np.max(np.abs(zero)) > 1e-5 * scale:
            return
        negative.append(float(np.min(values)) / scale)
    if negative and all(each < -1e-4 for each in negative):
        yield Measured(
            "it is 0 at y_pred = y_true, and negative elsewhere",
            got=f"{shown(min(negative))} of its largest value",
            expected="0 or more",
            reproducer=subject.reproducer("print(part(y_true, y_pred))  # of random numbers"),
        )


@rule(
    "N304",
    kinds=("loss", "activation", "regularizer", "constraint", "layer"),
    asserts="In float16 and bfloat16 it agrees with float32, within their precision.",
    why="Mixed precision is how large models are trained; a constant that float16 holds as 0 makes NaN of them.",
    example="""
        def log_loss(y_true, y_pred):
            return -ops.mean(y_true * ops.log(y_pred + 1e-8), axis=-1)       # 1e-8 is 0 in float16
    """,
    mend="Take keras.config.epsilon() or larger constants, and subtract before squaring; or compute in float32 and cast back.",
    needs=("B601",),
    variants=("float16", "bfloat16"),
)
def low_precision_agrees(subject: Subject, dtype: str) -> Iterator[Measured | Undecided]:
    """Held against how far the rounding of its inputs and weights alone would move its outputs."""
    if steadiness.draws(subject):
        yield Undecided("it draws random numbers, or gives something else at each call")
        return
    args = calls.mapped(lambda x: _held(x, dtype), subject.inputs.arguments())
    points = [("", args)]
    if subject.kind == "loss" and not subject.inputs.user_given and subject.inputs.pair_domain()[1] in ("unit", "probabilities"):
        points += [(f" {name}", calls.mapped(lambda x: _held(x, dtype), given)) for name, given in extremes(subject)]
    for where, given in points:
        reference, allowed = steadiness.outputs_and_noise(subject, given, dtype)
        try:
            got = _low(subject, given, dtype)
        except Exception as error:
            # A backend without a kernel for it; a part that mixes dtypes is found by S203.
            yield Undecided(f"it does not compute in {dtype}: {type(error).__name__}")
            return
        for y, right, noise in zip(got, reference, allowed, strict=True):
            if right.dtype.kind != "f" or y.shape != right.shape:
                continue
            largest = 65504.0 if dtype == "float16" else FLOAT32_MAX
            with np.errstate(invalid="ignore"):
                apart = np.abs(y.astype("float64") - right.astype("float64"))
            legal = np.isfinite(right) & (np.abs(right) < largest / 16)
            bad = legal & ~(apart <= noise)
            if np.any(bad):
                at = int(np.argmax(np.where(bad, np.where(np.isfinite(apart), apart, np.inf), 0.0)))
                yield Measured(
                    f"in {dtype} it gives {shown(float(y.flat[at]))}, in float32 {shown(float(right.flat[at]))}{where}",
                    got=shown(float(y.flat[at])),
                    expected=f"{shown(float(right.flat[at]))}, give or take {noise.flat[at]:.1e}",
                    reproducer=subject.reproducer(
                        f"given = [keras.ops.cast(a, {dtype!r}) for a in ({', '.join(_names(given))},)]",
                        "print(part(*given))",
                        inputs=dict(zip(_names(given), given, strict=True)),
                    ),
                )
                return


def _names(args: tuple[Any, ...]) -> list[str]:
    return [f"input{number}" for number in range(len(args))]


def _held(x: Any, dtype: str) -> Any:
    """Numbers as the low precision holds them, in float32."""
    x = np.asarray(x)
    return calls.arrays(ops.cast(ops.convert_to_tensor(x), dtype)).astype("float32") if x.dtype.kind == "f" else x


def _low(subject: Subject, args: tuple[Any, ...], dtype: str) -> list[np.ndarray]:
    if subject.kind == "layer":
        with policy(f"mixed_{dtype}"), doubles.retyped(subject, f"mixed_{dtype}") as part:
            calls.call(subject, part, *args)
            calls.cloned_weights(subject.instance(), part)
            return calls.outputs_of(subject, part, *args)
    part = subject.instance()
    if subject.kind == "loss" and not subject.is_function:
        try:
            part = subject.make(dtype=dtype)
        except Exception:
            # A constructor without dtype; what it is given has the low precision all the same.
            part = subject.instance()
    given = calls.mapped(lambda x: ops.cast(ops.convert_to_tensor(x), dtype) if np.asarray(x).dtype.kind == "f" else x, args)
    return [np.asarray(y) for y in calls.flat(calls.arrays(calls.call_on_tensors(subject, part, given)))]
