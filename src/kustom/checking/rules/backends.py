"""Family B: a part runs, on every backend, with the same numbers.

That it runs here at all is what nearly everything else waits on. Whether a failure is the part's or that of the inputs
which were made for it is told by what is raised: a name or attribute that there is not, or a call with arguments that it
does not take, is of the part whatever it is given.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.checking import calls, doubles, holding, steadiness, stepping, varying
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.processes import POOL, Answer
from kustom.checking.rules import rule
from kustom.checking.subjects import CALL, Subject
from kustom.errors import SubjectError

_OF_THE_PART = (NameError, AttributeError, NotImplementedError, RecursionError, ImportError)
# A tensor made while tracing that lived on, on each backend, and one that is asked for an array while it is differentiated.
_WRONG_TENSORS = ("on the expected device", "UnexpectedTracerError", "is out of scope", "Can't call numpy()")
_WRONG_CALLS = (
    "argument",
    "__jax_array__",
    "object is not callable",
    "'numpy.ndarray' and 'Tensor'",
    "'Tensor' and 'numpy.ndarray'",
)
# Keras's word for a layer that makes sublayers or weights in its call.
_LATE_STATE = "cannot add new elements of state"
_MEND_KEPT = (
    "A tensor that one call kept in an attribute is used in the next, which may be traced: keep state in a weight, "
    "self.add_weight(shape=..., trainable=False), and assign that."
)
# What mends a part that fails with these words of Keras or a backend.
_MENDS = {
    _LATE_STATE: "Make sublayers and weights in __init__ or build, each once: not in call, and not a second time in build.",
    "__jax_array__": "Make a tensor of a Variable first: keras.ops.convert_to_tensor(v); JAX's functions take no Variable.",
    "'ResourceVariable' object has no": "On TensorFlow update_step is given TensorFlow's own variable, which has no path: "
    "find what belongs to it by self._get_variable_index(variable).",
    "on the expected device": _MEND_KEPT,
    "UnexpectedTracerError": _MEND_KEPT,
    "is out of scope": _MEND_KEPT,
    "Can't call numpy()": "Compute with keras.ops: a tensor's .numpy() ends its gradient, and fails where the call is compiled.",
}
_MEND_UNBUILT = "Call super().build(variables) in build, which tells Keras what the optimizer is for."
_MEND_CONSTRUCTOR = "Mend what its constructor raises; what it needs besides is said by an example in __kustom__."


# Two operands of which one is another library's tensor.
_FOREIGN = re.compile(
    r"unsupported operand type\(s\) for \S+ '\w*Tensor' and '(jaxlib[\w.]*|ResourceVariable|Parameter|Tensor|EagerTensor)'"
)

_MARKED = re.compile("\x1b\\[[0-9;]*m")
_CALLING = re.compile(r"^Exception encountered when calling [\w.]+\(\)\. ")

KINDS = ("loss", "metric", "layer", "model", "activation", "initializer", "regularizer", "constraint", "optimizer")
_STEP = ("w = keras.Variable(np.ones((3, 2)))", f"part.build([w]); {CALL}")


@rule(
    "B601",
    kinds=KINDS,
    asserts="It runs on every installed backend.",
    why="A part that calls one backend's functions, or a name that there is not, fails for everybody else, at the first call.",
    example="""
        def my_positive_weights(w):
            return tf.where(w < 0, tf.zeros_like(w), w)
    """,
    mend="Call keras.ops, which every backend has.",
    where="every backend",
)
def runs_on_every_backend(subject: Subject, backend: str) -> Iterator[Measured | Undecided]:
    """It is called with the inputs that were given or found, here and in a process of each other backend."""
    if backend == keras.backend.backend():
        yield from _runs_here(subject)
        return
    answer = subject.once(f"on {backend}", lambda: _elsewhere(subject, backend))
    if isinstance(answer, str):
        yield Undecided(answer)
        return
    if not answer.broken and not answer.error:
        yield from _fits_elsewhere(subject, backend)
    yield from unanswered(
        answer,
        f"it runs on {keras.backend.backend()} and fails on {backend}",
        expected="a result",
        reproducer=f"# KERAS_BACKEND={backend} python\n" + subject.reproducer(*(_STEP if subject.kind == "optimizer" else (CALL,))),
    )


def _fits_elsewhere(subject: Subject, backend: str) -> Iterator[Measured | Undecided]:
    """A training step of a model's own, if it has one and fit runs here."""
    if subject.kind != "model" or not holding.has_own_step(type(subject.instance())):
        return
    args = subject.inputs.arguments()
    try:
        subject.once("fits", lambda: holding.trained(subject, doubles.copy_or_itself(subject), args))
    except Exception:
        # Whatever its step raises here is said by T406 and T407.
        return
    answer = POOL.ask(backend, "trained", recipe_of(subject), args=args)
    yield from unanswered(
        answer,
        f"fit runs on {keras.backend.backend()} and fails on {backend}",
        expected="a step",
        mend="Derive it from kustom.Model, whose train_step(self, data) is the same on every backend, with kustom.GradientTape.",
        reproducer=f"# KERAS_BACKEND={backend} python\n"
        + subject.reproducer("y = keras.ops.zeros_like(part(x))", "part.compile('sgd', 'mse'); part.fit(x, y)"),
    )


@rule(
    "B602",
    kinds=KINDS,
    asserts="The same weights and inputs give the same outputs on every backend.",
    why="A model trained on one backend would be another model on the next.",
    example="""
        def my_std(x):
            return torch.std(x) if keras.backend.backend() == "torch" else keras.ops.std(x)
    """,
    mend="Call keras.ops, whose functions agree; give what differs (an epsilon, a degree of freedom, a rounding) explicitly.",
    needs=("B601",),
    where="every backend",
)
def agrees_on_every_backend(subject: Subject, backend: str) -> Iterator[Measured | Undecided]:
    """The outputs elsewhere are those here, within what float32 allows for numbers that are rounded on the way."""
    here = keras.backend.backend()
    if backend == here:
        if subject.kind == "optimizer":
            yield from _applies_alike(subject)
        return
    answer = subject.once(f"on {backend}", lambda: _elsewhere(subject, backend))
    if isinstance(answer, str):
        yield Undecided(answer)
        return
    if answer.broken or answer.error:
        yield Undecided(f"it does not run on {backend}: see B601")
        return
    args = subject.inputs.arguments()
    if "shapes" in answer.value:
        copy = doubles.copy_or_itself(subject)
        calls.call(subject, copy, *args)
        if answer.value["shapes"] == [tuple(v.shape) for v in calls.float_variables(copy)]:
            # It was made from its config there, and here that makes another part, too.
            yield Undecided("its copy has other weights: see C102")
            return
        yield Measured(f"its weights have the shapes {answer.value['shapes']} on {backend}, others than on {here}")
        return
    if steadiness.draws(subject):
        yield Undecided("it draws random numbers, which are each backend's own, or changes from call to call")
        return
    ours, allowed = subject.once("steady", lambda: steadiness.outputs_and_noise(subject, args))
    theirs = answer.value["outputs"]
    if len(ours) != len(theirs):
        yield Measured(f"it gives {len(theirs)} outputs on {backend} and {len(ours)} on {here}")
        return
    for mine, other, noise in zip(ours, theirs, allowed, strict=True):
        mine, other = np.asarray(mine), np.asarray(other)
        if mine.shape != other.shape:
            yield Measured(f"the output has the shape {other.shape} on {backend} and {mine.shape} on {here}")
            return
        if mine.dtype.kind not in "fiub" or not mine.size:
            continue
        apart = calls.apart(mine, other)
        if not np.all(apart <= noise):
            if subject.kind in ("layer", "model") and not _copied_here(subject, args, ours):
                yield Undecided("a copy of it with the same weights gives something else here, too: see C102 and C109")
                return
            at = int(np.argmax(np.where(np.isnan(apart), np.inf, apart) - noise))
            yield Measured(
                f"the output is {shown(float(other.flat[at]))} on {backend} and {shown(float(mine.flat[at]))} on {here}",
                got=shown(float(other.flat[at])),
                expected=f"{shown(float(mine.flat[at]))}, give or take {noise.flat[at]:.1e}",
                reproducer=subject.reproducer(
                    *((*_STEP, "print(w.value)") if subject.kind == "optimizer" else (f"print({CALL})",)), "# on each backend"
                ),
            )
            return


def _copied_here(subject: Subject, args: tuple[Any, ...], ours: list[Any]) -> bool:
    """Whether a copy with the same weights gives the same in this process: else what another gives says nothing of backends."""
    copy = doubles.copy_or_itself(subject)
    calls.call(subject, copy, *args)
    mine, theirs = calls.float_variables(subject.instance()), calls.float_variables(copy)
    if [v.shape for v in mine] != [v.shape for v in theirs]:
        return False
    for variable, other in zip(mine, theirs, strict=True):
        other.assign(variable)
    return calls.same(ours, calls.outputs_of(subject, copy, *args))


def _applies_alike(subject: Subject) -> Iterator[Measured]:
    """On TensorFlow fit calls an optimizer's `apply_gradients`, elsewhere its `apply`."""
    written = [base for base in type(subject.instance()).__mro__ if not private.is_library(base.__module__)]
    if not any("apply_gradients" in vars(base) for base in written) or steadiness.draws(subject):
        return
    args = subject.inputs.arguments()
    by_apply, by_pairs = (stepping.trained_by(subject.instance(), *args, by_pairs=by_pairs) for by_pairs in (False, True))
    if not calls.same(by_apply, by_pairs):
        _, a, b = calls.worst(by_apply, by_pairs)
        yield Measured(
            f"apply_gradients, by which fit steps on TensorFlow, makes a weight {shown(b)}; apply, as elsewhere, {shown(a)}",
            got=shown(b),
            expected=shown(a),
            mend="Override apply(grads, trainable_variables), which apply_gradients calls, and not apply_gradients.",
            reproducer=subject.reproducer(
                _STEP[0],
                "part.build([w]); part.apply_gradients([(keras.ops.convert_to_tensor(np.eye(3, 2)), w)])",
                "print(w.value)",
            ),
        )


@rule(
    "B603",
    kinds=("loss", "metric", "layer", "model", "activation", "regularizer", "constraint"),
    asserts="It takes tensors, NumPy arrays and Variables alike.",
    why="Keras hands a constraint or a regularizer a Variable, a user an array; on JAX a Variable in plain operations raises.",
    example="""
        class UnitNorm(keras.constraints.Constraint):
            def __call__(self, w):
                return w.at[0].set(0.0)
    """,
    mend="Begin with x = keras.ops.convert_to_tensor(x), and compute with keras.ops.",
    needs=("B601",),
)
def takes_arrays_and_variables(subject: Subject) -> Iterator[Measured | Undecided]:
    """The result for an array and for a Variable is that for a tensor."""
    args = subject.inputs.arguments()
    if any(not isinstance(x, np.ndarray) or x.dtype.kind != "f" for x in args[-1:]):
        return
    if steadiness.draws(subject):
        yield Undecided("it draws random numbers, or gives something else at each call")
        return
    reference = _given(subject, calls.tensors(args))
    # Keras makes tensors of what a layer, loss or metric is given; of a Variable it does not, and nobody gives one to them.
    forms = {"a NumPy array": lambda x: x}
    if subject.kind in ("regularizer", "constraint"):
        forms = {"a Variable": lambda x: keras.Variable(x), **forms}
    for name, form in forms.items():
        if subject.kind == "activation" or (subject.is_function and subject.kind in ("loss", "metric")):
            # Only ever called by Keras, with tensors.
            continue
        try:
            got = _given(subject, tuple(form(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in args))
        except Exception as error:
            # Whatever a part raises.
            yield failed(subject, error, f"it fails when given {name}", args)
            continue
        if not calls.same(reference, got):
            _, a, b = calls.worst(reference, got)
            yield Measured(f"it gives {shown(b)} for {name}, and {shown(a)} for a tensor", got=shown(b), expected=shown(a))


def _given(subject: Subject, args: tuple[Any, ...]) -> Any:
    instance = subject.instance()
    if subject.kind == "metric":
        with calls.left_as_it_was(instance):
            instance.reset_state()
            calls.update(instance, *args)
            return calls.arrays(instance.result())
    return calls.arrays(instance(*args, **calls.training_of(subject)) if subject.kind in ("layer", "model") else instance(*args))


def _elsewhere(subject: Subject, backend: str) -> Any:
    """The answers of all other backends, asked side by side; that of one of them. Text where none could be asked."""
    others = [name for name in POOL.backends if name != keras.backend.backend()]
    try:
        recipe = recipe_of(subject)
    except SubjectError as error:
        return str(error)
    except Exception as error:
        # Whatever a config raises: C101 and C102 say so.
        return f"its config fails: {one_line(error)}"
    answers = _asked(subject, others, recipe, subject.inputs.arguments())
    if any(answer.error and not answer.own for answer in answers.values()):
        # Inputs that were made for it and that one backend refuses need not be its own: others may be taken everywhere.
        for candidate, args in subject.inputs.others():
            again = _asked(subject, others, recipe, args)
            if not any(answer.error or answer.broken for answer in again.values()):
                subject.inputs.take(candidate)
                answers = again
                break
    subject.known |= {f"on {name}": answer for name, answer in answers.items()}
    return answers[backend]


def recipe_of(subject: Subject) -> dict[str, Any]:
    """How another process makes the part again.

    Raises:
        SubjectError: It cannot, or by a config that JSON gives back as something else: an array or a layer becomes a dict.
    """
    part = subject.instance()
    if not subject.making.is_class and varying.has_config(subject) and not private.is_library(type(part).__module__):
        held = [value for _, value in varying.leaves(part.get_config())]
        if not all(map(varying.is_plain, held)):
            raise SubjectError("a file gives back something else than its config: see C107")
        if any(hasattr(value, "get_config") for value in held) and not varying.overrides_from_config(part):
            raise SubjectError("a file gives back a dict for an object in its config: see C108")
    return subject.making.recipe()


def _asked(subject: Subject, others: list[str], recipe: dict[str, Any], args: tuple[Any, ...]) -> dict[str, Answer]:
    weights = None
    if subject.kind in ("layer", "model"):
        calls.call(subject, subject.instance(), *args)
        weights = calls.float_weights(subject.instance())
    for name in others:
        POOL.send(name, "outputs", recipe, args=args, weights=weights)
    return {name: POOL.receive(name) for name in others}


def _runs_here(subject: Subject) -> Iterator[Measured | Undecided]:
    try:
        instance = subject.instance()
    except SubjectError as error:
        yield Undecided(str(error))
        return
    except Exception as error:
        # Whatever a constructor raises.
        yield failed(subject, error, "it cannot be made", shows=("print(part)",), mend=_MEND_CONSTRUCTOR)
        return
    try:
        args = subject.inputs.arguments()
    except SubjectError as error:
        yield from _without_inputs(subject, error)
        return
    try:
        refuse_foreign(calls.call(subject, instance, *args))
    except Exception as error:
        # As above.
        if subject.kind == "optimizer":
            mend = _MEND_UNBUILT if "Unknown variable:" in str(error) else ""
            yield failed(subject, error, "it fails when it makes a step", shows=_STEP, mend=mend)
        elif subject.inputs.user_given or subject.kind not in ("loss", "metric", "layer", "model") or of_the_part(error):
            yield failed(subject, error, "it fails when called", args)
        else:
            yield Undecided(f"the inputs made for it are refused: {one_line(error)}; give inputs=")


def _without_inputs(subject: Subject, why: SubjectError) -> Iterator[Measured | Undecided]:
    # The first are the likeliest inputs; the later ones may be wrong for it in ways of their own.
    first = subject.inputs.failures[0] if subject.inputs.failures else None
    if first is not None and of_the_part(first[1]):
        yield failed(subject, first[1], f"it fails when called with {first[0]}")
        return
    failures = subject.inputs.failures
    tried = f" (tried {len(failures)}; the first: {one_line(failures[0][1])})" if failures else ""
    yield Undecided(f"{why}{tried}")


def refuse_foreign(outputs: Any) -> None:
    """Raise where something is a tensor of a library that is not the backend: it has numbers, but no gradient, and no program."""
    for y in calls.flat(outputs):
        known = isinstance(y, np.ndarray | np.generic | keras.Variable) or ops.is_tensor(y)
        if hasattr(y, "shape") and not known:
            name = f"{type(y).__module__.partition('.')[0]} {type(y).__name__}"
            raise NotImplementedError(f"it returns a {name}, which is no tensor of {keras.backend.backend()}")


def of_the_part(error: BaseException) -> bool:
    """Whether an error is the part's whatever it was called with."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, _OF_THE_PART) or any(text in said for text in (_LATE_STATE, *_WRONG_TENSORS)):
        return True
    if not isinstance(error, TypeError):
        return False
    return any(text in str(error) for text in _WRONG_CALLS) or bool(_FOREIGN.search(str(error)))


def failed(
    subject: Subject, error: BaseException, what: str, args: tuple[Any, ...] = (), shows: tuple[str, ...] = (), mend: str = ""
) -> Measured:
    """The finding that an exception is; it `shows` where the part is not called with `args`."""
    place = line_of(error)
    return Measured(
        f"{what}: {one_line(error)}",
        input=", ".join(f"{shown(getattr(x, 'shape', x))}" for x in args if not isinstance(x, list)),
        got=one_line(error),
        expected="a result",
        mend=mend or _not_written(error) or _mend_of(f"{type(error).__name__}: {error}"),
        place=place,
        reproducer=subject.reproducer(
            *(shows or (CALL if not args else f"part({', '.join(f'x{i}' for i in range(len(args)))})",)),
            inputs={f"x{i}": x for i, x in enumerate(args) if hasattr(x, "dtype")},
        ),
    )


def _mend_of(text: str) -> str:
    return next((mend for said, mend in _MENDS.items() if said in text), "")


def _not_written(error: BaseException) -> str:
    """The mend where Keras calls a method that a subclass has to write."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    if not isinstance(error, NotImplementedError) or str(error) or not last or f"{os.sep}keras{os.sep}" not in last[0].filename:
        return ""
    return f"Write {last[0].name}, which Keras calls and which it has not."


def unanswered(
    answer: Answer, what: str, expected: str = "", reproducer: str = "", mend: str = ""
) -> Iterator[Measured | Undecided]:
    """What there is to say where a part failed in another process, or where that ended; nothing where it answered."""
    if answer.broken:
        yield Undecided(answer.broken)
    elif answer.error:
        message = f"{what}: {answer.error}"
        mend = mend or _mend_of(answer.error)
        yield Measured(message, got=answer.error, expected=expected, place=answer.place, reproducer=reproducer, mend=mend)


def line_of(error: BaseException) -> str:
    """`file:line` of the last of the user's own lines in a traceback."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(ours) and "site-packages" not in frame.filename and "<" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}"
    return ""


def one_line(error: BaseException) -> str:
    """An exception, on one line."""
    # Keras makes parts of its messages bold, and says first what it called.
    text = " ".join(_MARKED.sub("", str(error)).split())
    return f"{type(error).__name__}: {_CALLING.sub('', text)[:160]}"
