"""Which parts a module or the cells of a notebook define, and with which arguments they are made.

A class is a part where it derives from one of Keras's. A plain function is one where its parameters, its name or its use
say of which kind: a helper that happens to take a tensor is nobody's activation. A function that makes a loss (`create_huber`)
is called, and what it makes is the part.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import types
from collections.abc import Iterator
from typing import Any

import keras

from kustom.checking import keras_names
from kustom.checking.subjects import Subject, declaration, kind_of
from kustom.errors import SubjectError

__all__ = ["Found", "definitions", "found_in", "runnable"]

# Tried in the place of an argument that nothing says: a factor or rate first, then a count.
_GUESSES = (0.5, 4)
_BY_ANNOTATION = {"int": (4,), "float": (0.5,), "bool": (True,)}


@dataclasses.dataclass(frozen=True)
class Found:
    """A part, and where it is written.

    Attributes:
        part: The class, function or instance.
        name: Its name, or the expression that makes it.
        kind: One of the kinds of parts.
        line: Where it is written, from 1.
        example: How it is made, for a subject; None where it needs no arguments or says so itself.
    """

    part: Any
    name: str
    kind: str
    line: int
    example: dict[str, Any] | None = None


def definitions(tree: ast.Module) -> Iterator[Any]:
    """What a module defines or assigns at its top, inside of `if`, `try` and `with` too."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            handlers = [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
            waiting = [*inner, *handlers, *waiting]


def might_define_parts(tree: ast.Module) -> bool:
    """Whether a module has a class with a base, or a function that could be a part, so that it is worth importing."""
    used = _uses(tree)
    for node in definitions(tree):
        if isinstance(node, ast.ClassDef) and node.bases:
            return True
        if isinstance(node, ast.FunctionDef) and (_kind_by_reading(node, used) or _makes_a_part(node) or node.decorator_list):
            return True
    return False


def found_in(
    namespace: dict[str, Any], tree: ast.Module, everything: ast.Module | None = None, module: str = ""
) -> Iterator[Found]:
    """The parts that a module, or a cell, defines.

    Args:
        namespace: What its names stand for, once it has run.
        tree: The module, or the cell.
        everything: All the cells, where there are several: calls and uses may stand in another one.
        module: The name of the module, so that what is imported is left to where it is defined.

    Yields:
        Each part once.
    """
    everything = everything or tree
    used = _uses(everything)
    for node in definitions(tree):
        names = (
            [target.id for target in node.targets if isinstance(target, ast.Name)] if isinstance(node, ast.Assign) else [node.name]
        )
        for name in names:
            if name in namespace and not name.startswith("_"):
                yield from _part(name, namespace[name], node, used, everything, module)


def _part(name: str, value: Any, node: Any, used: dict[str, str], everything: ast.Module, module: str) -> Iterator[Found]:
    if isinstance(node, ast.ClassDef) and isinstance(value, type):
        try:
            kind = kind_of(value)
        except SubjectError:
            return
        yield Found(value, name, kind, node.lineno, _example(value, kind, everything))
    elif isinstance(node, ast.FunctionDef) and isinstance(value, types.FunctionType):
        kind = (declaration(value).get("kind") if hasattr(value, "__kustom__") else None) or _kind_by_reading(node, used)
        if kind is not None:
            yield Found(value, name, kind, node.lineno)
        elif _makes_a_part(node):
            yield from _made(name, value, node)
    elif hasattr(value, "definition") if isinstance(node, ast.FunctionDef) else _holds_a_function(value, module):
        yield Found(value, name, kind_of(value), node.lineno)


def _made(name: str, function: Any, node: ast.FunctionDef) -> Iterator[Found]:
    """What a function of no arguments, or of those that have defaults, makes."""
    parameters = inspect.signature(function).parameters.values()
    needed = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    try:
        made = function(**dict.fromkeys((p.name for p in needed), _GUESSES[0]))
    except Exception:
        # Whatever it raises for an argument that is a guess.
        return
    if isinstance(made, types.FunctionType):
        arguments = ", ".join(f"{p.name}={_GUESSES[0]}" for p in needed)
        yield Found(made, f"{name}({arguments})", "loss", node.lineno)


def _makes_a_part(node: ast.FunctionDef) -> bool:
    """Whether a function returns a loss that it defines inside."""
    inner = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    returned = {each.value.id for each in node.body if isinstance(each, ast.Return) and isinstance(each.value, ast.Name)}
    return any(_names(inner[name])[:2] == ["y_true", "y_pred"] for name in returned & inner.keys())


def _names(node: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]


def _kind_by_reading(node: ast.FunctionDef, used: dict[str, str]) -> str | None:
    """The kind of a plain function, where its parameters, its name or its use say so."""
    names = _names(node)
    count = len(names) - len(node.args.defaults)
    if names[:2] == ["y_true", "y_pred"] and count == 2:
        return "metric" if used.get(node.name) == "metric" else "loss"
    if names[:2] == ["shape", "dtype"] and count <= 2:
        return "initializer"
    if count != 1 or not _computes(node):
        return None
    if node.name in used:
        return used[node.name] if used[node.name] in ("activation", "regularizer", "constraint") else None
    if names[0] in ("w", "weight", "weights", "kernel"):
        # Whether a penalty or a projection shows in what it returns: the subject finds out.
        return "regularizer" if _reduces(node) else "constraint"
    last = node.name.rpartition("_")[2]
    is_activation = keras_names.knows("activation", last) or last == "activation"
    return "activation" if is_activation else None


def _computes(node: ast.FunctionDef) -> bool:
    """Whether a function returns a value, in every way out that can be seen, and yields none."""
    inside = list(ast.walk(node))
    returns = [each for each in inside if isinstance(each, ast.Return)]
    return bool(returns) and all(r.value is not None for r in returns) and not any(isinstance(n, ast.Yield) for n in inside)


def _reduces(node: ast.FunctionDef) -> bool:
    """Whether what a function returns is a sum or a mean over everything."""
    for returned in (each.value for each in ast.walk(node) if isinstance(each, ast.Return)):
        for call in ast.walk(returned) if returned is not None else ():
            name = call.func.attr if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else ""
            if name in ("sum", "mean", "reduce_sum", "reduce_mean", "norm") and not any(k.arg == "axis" for k in call.keywords):  # type: ignore[attr-defined]
                return True
    return False


def _uses(tree: ast.Module) -> dict[str, str]:
    """For what the functions of a module are used: `activation=my_relu`, `compile(loss=huber_fn)`."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                family = keras_names.family_of(keyword.arg or "")
                values = keyword.value.elts if isinstance(keyword.value, ast.List | ast.Tuple) else [keyword.value]
                found |= {value.id: family for value in values if family and isinstance(value, ast.Name)}
            if isinstance(node.func, ast.Attribute | ast.Name) and ast.unparse(node.func).endswith("Activation"):
                found |= {argument.id: "activation" for argument in node.args if isinstance(argument, ast.Name)}
    return found


def _holds_a_function(value: Any, module: str) -> bool:
    """Whether an object of Keras's own was made of a function of the module: `keras.layers.Lambda(lambda x: ...)`."""
    if isinstance(value, type) or not keras_names.is_keras(type(value)) or not hasattr(value, "get_config"):
        return False
    held = [each for each in vars(value).values() if isinstance(each, types.FunctionType)]
    return any(function.__module__ == module for function in held)


def _example(cls: type, kind: str, tree: ast.Module) -> dict[str, Any] | None:
    """How a class that needs arguments is made: as a call in the source does, or by a guess that runs."""
    if declaration(cls).get("examples"):
        return None
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return None
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not needed:
        return None
    for settings in itertools.chain(_called(cls, tree), _guessed(needed)):
        example = {"settings": settings}
        if runnable(cls, kind, example):
            return example
    return None


def _called(cls: type, tree: ast.Module) -> Iterator[dict[str, Any]]:
    """The arguments of calls in the source that are all literals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == cls.__name__:
            try:
                arguments = [ast.literal_eval(each) for each in node.args]
                keywords = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
                bound = inspect.signature(cls).bind(*arguments, **keywords)
            except (TypeError, ValueError):
                continue
            extra = bound.arguments.pop("kwargs", {})
            yield {**bound.arguments, **extra}


def _guessed(needed: list[inspect.Parameter]) -> Iterator[dict[str, Any]]:
    if len(needed) > 4:
        return
    choices = [_BY_ANNOTATION.get(getattr(p.annotation, "__name__", str(p.annotation)), _GUESSES) for p in needed]
    for values in itertools.product(*choices):
        yield dict(zip((p.name for p in needed), values, strict=True))


def runnable(cls: type, kind: str, example: dict[str, Any]) -> bool:
    """Whether a class can be made so, and runs."""
    try:
        subject = Subject(cls, kind=kind, example=example)
        part = subject.make()
        if kind in ("layer", "model", "loss", "metric"):
            subject.inputs.arguments()
        elif kind == "initializer":
            part((3, 2))
        elif kind in ("regularizer", "constraint"):
            part(keras.ops.ones((3, 2)))
    except Exception:
        # Whatever a part raises for arguments that are a guess.
        return False
    return True
