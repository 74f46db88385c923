"""What is checked: a part, of which kind it is, how a new one of it is made, what it says of itself, and its inputs.

A class is made with its defaults, or as its `__kustom__` says: a plain dict, so that a package need not import kustom::

    __kustom__ = {
        "examples": [{"settings": {"units": 4}, "inputs": np.ones((2, 3))}],   # or functions that return (part, inputs)
        "tags": {"couples_batch": True},
        "expected_failures": {"B601": "calls a function of TensorFlow's alone"},
    }

An instance is copied by its config; where that is not possible it is used itself. Nothing here knows a class by its name.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import types
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.checking import making
from kustom.checking.domains import draw
from kustom.checking.inputs import Inputs
from kustom.checking.rules import KINDS
from kustom.errors import SubjectError, did_you_mean, refuse_tf_keras

__all__ = ["TAGS", "Subject", "kind_of", "subjects_of"]

BASES: dict[str, type] = {
    "model": keras.Model,
    "layer": keras.layers.Layer,
    "loss": keras.losses.Loss,
    "metric": keras.metrics.Metric,
    "initializer": keras.initializers.Initializer,
    "regularizer": keras.regularizers.Regularizer,
    "constraint": keras.constraints.Constraint,
    "optimizer": keras.optimizers.Optimizer,
}

# What a part may say of itself, and the type of it.
TAGS: dict[str, type] = {
    "couples_batch": bool,  # what comes out for a sample depends on the others of its batch
    "distance": bool,  # a loss that is 0 where y_pred = y_true and never negative; a regularizer: 0 at 0
    "domain": str,  # of its inputs: see `kustom.checking.domains.DOMAINS`
    "needs_training": bool,  # it cannot be called outside of training
    "no_gradient": bool,  # it is not meant to be differentiated
    "nondeterministic": bool,  # two calls on the same inputs may differ, in inference too
    "not_a_projection": bool,  # a constraint that changes its own result again
}

ENTRIES = ("examples", "tags", "expected_failures", "kind")


class Subject:
    """One part under test.

    Attributes:
        part: What was given: an instance, a class, a function, a decorated function.
        kind: One of `KINDS`.
        name: For reports; stable and readable.
        place: `file:line` of its definition; empty where that is unknown.
        tags: What the part says of itself.
        expected_failures: Reasons by code.
        seed: From which all random numbers come, together with the name and the code of the check.
    """

    def __init__(
        self,
        part: Any,
        *,
        kind: str | None = None,
        name: str | None = None,
        place: str | None = None,
        inputs: Any = None,
        domain: Any = None,
        expected_failures: dict[str, str] | None = None,
        seed: int | str = 0,
        example: Any = None,
        source: str | None = None,
    ) -> None:
        refuse_tf_keras(part)
        declared = declaration(part)
        self.part = part
        self.kind = kind or declared.get("kind") or kind_of(part)
        if self.kind not in KINDS:
            raise SubjectError(f"there is no kind {self.kind!r} of parts; the kinds are {', '.join(KINDS)}.")
        self.name = name or name_of(part)
        self.place = place if place is not None else place_of(part)
        self.tags: dict[str, Any] = declared.get("tags", {})
        self.expected_failures = {**declared.get("expected_failures", {}), **(expected_failures or {})}
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed == "random" else int(seed)
        self.making = making.Making(part, self.kind, example, source)
        given = inputs if inputs is not None else self.making.inputs
        self.inputs = Inputs(self, given=given, domain=domain if domain is not None else self.tags.get("domain"))
        # What checks have found out about the part once, for those that come after them.
        self.known: dict[str, Any] = {}

    def rng(self, code: str) -> np.random.Generator:
        """Random numbers, always the same for this part and this code."""
        return np.random.default_rng([zlib.crc32(self.name.encode()), zlib.crc32(code.encode()), self.seed])

    def make(self, **settings: Any) -> Any:
        """A new part, with `settings` in the place of its own.

        Raises:
            SubjectError: It cannot be made.
        """
        return self.making.make(**settings)

    def instance(self) -> Any:
        """The part that was given, where it is one, else a new one."""
        return self.making.instance()

    @property
    def is_function(self) -> bool:
        """Whether the part is a plain function, which has no settings and no config."""
        return isinstance(self.part, types.FunctionType)

    def tagged(self, tag: str) -> bool:
        """Whether the part says so of itself."""
        return bool(self.tags.get(tag, False))

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What `find` returns, found once for this subject."""
        if name not in self.known:
            self.known[name] = find()
        return self.known[name]

    def reproducer(self, *lines: str, inputs: Any = None, first: str = "") -> str:
        """Lines that can be pasted: the imports, `part` made, and `lines`.

        Args:
            lines: What shows it. `CALL` in them stands for a call of the part, and `part(x` for the beginning of one; the names
                x, w, y_true and y_pred stand for what the part is called with, where they are used and not given.
            inputs: Other arrays, by their names.
            first: A line that comes before the part is made.
        """
        head, made = self.making.spelled()
        given = dict(inputs or {})
        text = "\n".join(lines)
        if CALL in text or _FREE.search(text):
            free = self._free_inputs(given)
            call = {
                "loss": "part(y_true, y_pred)",
                "metric": "part.update_state(y_true, y_pred)",
                "initializer": "part((6, 4))",
                "optimizer": "part.apply([keras.ops.full((3, 2), 0.5)], [w])",
            }
            text = text.replace(CALL, call.get(self.kind, "part(x)"))
            if isinstance(free.get("x"), tuple):
                text = text.replace("part(x", "part(*x")
            given |= {name: x for name, x in free.items() if re.search(rf"\b{name}\b", text)}
        spelled = [f"{name} = {tensor_text(x)}" for name, x in given.items()]
        made = made if made.startswith("#") else f"part = {made}"
        return "\n".join(line for line in [f"import keras, numpy as np; {head}", first, made, *spelled, text] if line)

    def _free_inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        try:
            args = self.inputs.arguments()
        except SubjectError:
            # It runs on nothing, which is what the lines show.
            x = draw("reals", self.rng("inputs"), (3, 4))
            args = (x, x) if self.kind in ("loss", "metric") else (x,)
        if self.kind in ("loss", "metric") and len(args) == 2:
            found = dict(zip(("y_true", "y_pred"), args, strict=True))
        elif self.kind in ("initializer", "optimizer"):
            found = {}
        else:
            found = {"x": args[0] if len(args) == 1 else tuple(args), "w": args[0]}
        return {name: x for name, x in found.items() if name not in given}


# In the lines of a reproducer, a call of the part with what it is called with.
CALL = "part(inputs)"
_FREE = re.compile(r"\b(x|w|y_true|y_pred)\b")


def tensor_text(x: Any) -> str:
    """What a part is called with as Python text: tensors, in lists and tuples."""
    if isinstance(x, list | tuple):
        inside = ", ".join(map(tensor_text, x))
        return f"[{inside}]" if isinstance(x, list) else f"({inside},)"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key!r}: {tensor_text(item)}" for key, item in x.items()) + "}"
    return f"keras.ops.convert_to_tensor({array_text(x)})" if hasattr(x, "dtype") else repr(x)


def array_text(x: Any) -> str:
    """An array as Python text, with the numbers where they are few."""
    x = np.asarray(ops.convert_to_numpy(x) if ops.is_tensor(x) else x)
    if x.size <= 12:
        short = np.vectorize(lambda number: float(f"{number:.7g}"), otypes=["float64"])
        numbers = short(x).tolist() if x.dtype.kind == "f" and x.size else x.tolist()
        text = re.sub(r"\b(nan|inf)\b", r"np.\1", repr(numbers))
        return f"np.array({text}, {str(x.dtype)!r})"
    if x.dtype.kind == "f":
        return f"np.random.default_rng(0).normal(size={x.shape}).astype({str(x.dtype)!r})"
    return f"np.random.default_rng(0).integers(0, {int(x.max()) + 1}, {x.shape})"


def kind_of(part: Any) -> str:
    """The kind of a part.

    Raises:
        SubjectError: It is none, or a plain function of which nothing shows the kind.
    """
    cls = part if isinstance(part, type) else type(part)
    for kind, base in BASES.items():
        if issubclass(cls, base):
            return kind
    definition = getattr(part, "definition", None)
    if definition is not None and hasattr(definition, "kind"):
        return definition.kind
    if isinstance(part, types.FunctionType | types.BuiltinFunctionType) or (callable(part) and not isinstance(part, type)):
        return _kind_of_function(part)
    raise SubjectError(
        f"{name_of(part)} is no Keras part (a loss, metric, layer, model, activation, initializer, regularizer, constraint, "
        "optimizer) and no function; give the part itself."
    )


def _kind_of_function(function: Any) -> str:
    """By what it takes, and where that is one tensor by what it returns."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in parameters if p.name in names and p.default is p.empty]
    if names[:2] == ["y_true", "y_pred"] or (len(needed) == 2 and names[:1] != ["shape"]):
        return "loss"
    if names[:1] == ["shape"]:
        return "initializer"
    if names[:1] in (["w"], ["weights"], ["weight"], ["kernel"], ["variable"]):
        return "regularizer" if _returns_scalar(function) else "constraint"
    if len(needed) == 1 or names:
        return "regularizer" if _returns_scalar(function) else "activation"
    raise SubjectError(
        f"{name_of(function)} takes ({', '.join(names)}), from which its kind does not show. Say it: "
        f"{name_of(function)}.__kustom__ = {{'kind': 'activation'}} (or {', '.join(KINDS)})."
    )


def _returns_scalar(function: Any) -> bool:
    x = ops.convert_to_tensor(np.linspace(-1.0, 1.0, 12, dtype="float32").reshape(4, 3))
    try:
        return len(getattr(function(x), "shape", (None,))) == 0
    except Exception:
        # Whatever it raises, it is the battery that says so.
        return False


def name_of(part: Any) -> str:
    """A short name, without addresses."""
    named = part if hasattr(part, "__qualname__") else type(part)
    return str(getattr(named, "__name__", type(part).__name__))


def place_of(part: Any) -> str:
    """`file:line` of a part's definition; empty where there is none, or where it is Keras's own."""
    written = getattr(part, "fn", None) or (part if hasattr(part, "__code__") else part if isinstance(part, type) else type(part))
    try:
        file = inspect.getsourcefile(inspect.unwrap(written)) if callable(written) else None
        line = inspect.getsourcelines(written)[1]
    except (TypeError, OSError):
        return ""
    return f"{file}:{max(line, 1)}" if file else ""


def declaration(part: Any) -> dict[str, Any]:
    """What stands in the part's `__kustom__`, its examples as a list.

    Raises:
        SubjectError: It is no dict, or holds an entry or a tag that there is not, or one of another type.
    """
    declared = getattr(part, "__kustom__", None)
    if declared is None:
        return {}
    name = name_of(part)
    if not isinstance(declared, dict):
        raise SubjectError(f"{name}.__kustom__ is a dict with {', '.join(ENTRIES)}, not {type(declared).__name__}.")
    for entry in declared:
        if entry not in ENTRIES:
            raise SubjectError(
                f"{name}.__kustom__ has {entry!r}; its entries are {', '.join(ENTRIES)}.{did_you_mean(entry, ENTRIES)}"
            )
    examples = declared.get("examples", [])
    declared = {**declared, "examples": list(examples) if isinstance(examples, list | tuple) else [examples]}
    for tag, value in declared.get("tags", {}).items():
        if tag not in TAGS:
            raise SubjectError(f"{name}.__kustom__ has the tag {tag!r}; the tags are {', '.join(TAGS)}.{did_you_mean(tag, TAGS)}")
        if not isinstance(value, TAGS[tag]):
            raise SubjectError(f"{name}.__kustom__: the tag {tag!r} is a {TAGS[tag].__name__}, not {value!r}.")
    for code, reason in declared.get("expected_failures", {}).items():
        if not isinstance(reason, str) or not reason:
            raise SubjectError(f"{name}.__kustom__: the expected failure {code} has its reason as a text, not {reason!r}.")
    return declared


def subjects_of(part: Any, **given: Any) -> list[Subject]:
    """A subject for each example that a part names, one where it names none."""
    examples = declaration(part).get("examples", []) if isinstance(part, type) or not hasattr(type(part), "__kustom__") else []
    name = given.pop("name", None) or name_of(part)
    if not examples:
        return [Subject(part, name=name, **given)]
    return [
        Subject(part, name=name if len(examples) == 1 else f"{name}-{number}", example=example, **given)
        for number, example in enumerate(examples, 1)
    ]


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    """Inside, layers made without a dtype have this policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
