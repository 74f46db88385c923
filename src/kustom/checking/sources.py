"""The faults of names and calls in a piece of source, found by reading it: the U rules.

Undefined names are found by pyflakes; attributes and arguments are looked up in the libraries themselves (`scopes.py` says
what a name stands for, `keras_names.py` what Keras accepts). Nothing of the source is run. What is guarded, by `hasattr`, by
a version, by a handler of the error it would raise, is the author's business.

Where the right spelling is certain, a problem holds the edits that write it. `Source.mended` applies them, so that the checks
that run the code can say what else is wrong with it: a jump that stands behind an undefined name is a fault of its own.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import linecache
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pyflakes.checker
import pyflakes.messages

from kustom.checking import keras_names, scopes
from kustom.checking.libraries import ROOTS, Thing
from kustom.checking.scopes import ClassInfo, Scope
from kustom.checking.source_rules import BY_NAME, RULES

__all__ = ["Edit", "Problem", "Reader", "Source", "of_file", "read"]


@dataclasses.dataclass(frozen=True, order=True)
class Edit:
    """Replace what stands on a line between two columns, counted in bytes of UTF-8 as `ast` does."""

    line: int
    start: int
    end: int
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A fault in the source.

    Attributes:
        code: The rule's.
        line: Where it stands, from 1.
        column: Where on the line, from 1, in characters.
        part: The outermost function or class around it, with the method; empty at the top of the module.
        message: What is wrong, in a sentence.
        mend: What to write.
        got: What is written.
        expected: What should be.
        edits: How to write that, where it is certain.
    """

    code: str
    line: int
    column: int
    part: str
    message: str
    mend: str = ""
    got: str = ""
    expected: str = ""
    edits: tuple[Edit, ...] = ()


class _Names(pyflakes.checker.Checker):
    """pyflakes without annotations in text, whose words need no meaning in Python (`Float[Array, "batch features"]`)."""

    def handleStringAnnotation(self, *args: Any, **kwargs: Any) -> None:  # noqa: N802
        pass


@dataclasses.dataclass
class Source:
    """A module's text, and what is wrong with it.

    Attributes:
        text: The text.
        filename: Where it comes from.
        tree: What it says.
        problems: What is wrong, by line.
        undecided: What could not be told, by code, and why.
    """

    text: str
    filename: str
    tree: ast.Module
    problems: list[Problem] = dataclasses.field(default_factory=list)
    undecided: dict[str, str] = dataclasses.field(default_factory=dict)

    def within(self, first: int, last: int) -> list[Problem]:
        """The problems on some lines, both ends included."""
        return [problem for problem in self.problems if first <= problem.line <= last]

    @property
    def mended(self) -> str:
        """The text with every certain mend written in; line numbers stay."""
        lines = self.text.encode().split(b"\n")
        edits = sorted({edit for problem in self.problems for edit in problem.edits}, reverse=True)
        last: tuple[int, int] | None = None
        for edit in edits:
            if last is not None and edit.line == last[0] and edit.end > last[1]:
                continue  # a place that is mended already
            line = lines[edit.line - 1]
            lines[edit.line - 1] = line[: edit.start] + edit.text.encode() + line[edit.end :]
            last = (edit.line, edit.start)
        return b"\n".join(lines).decode()


@functools.lru_cache(maxsize=256)
def read(text: str, filename: str = "<source>") -> Source:
    """Find what is wrong in the source of a module.

    Args:
        text: The source.
        filename: Where it comes from, for messages.

    Returns:
        The source with its problems.

    Raises:
        SyntaxError: It is not Python.
    """
    source = Source(text, filename, ast.parse(text, filename))
    Reader(source).read()
    unique = {(problem.code, problem.line, problem.column): problem for problem in source.problems}
    source.problems = sorted(unique.values(), key=lambda problem: (problem.line, problem.column, problem.code))
    return source


class Reader:
    """Goes through a module once, with the scope and the part around each node."""

    def __init__(self, source: Source) -> None:
        self.source, self.tree = source, source.tree
        self.lines = source.text.split("\n")
        self.scope = scopes.collect(self.tree)
        self.scopes: dict[ast.AST, Scope] = {}
        self.parts: dict[ast.AST, str] = {}
        self.guarded: set[ast.AST] = set()
        self.parents: dict[ast.AST, ast.AST] = {}
        self._enter(self.tree, self.scope, "", False)
        nodes = list(ast.walk(self.tree))
        self.stored = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        self.defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        self.texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        self.imported = {name for node in nodes for name in _imported(node)}
        self.closed = self.imported <= {*ROOTS, *sys.stdlib_module_names, *_HARMLESS}
        self.imports_keras = bool(self.imported & {"keras", "tensorflow", "kustom"})

    def read(self) -> None:
        self._undefined_names()
        if "TF_USE_LEGACY_KERAS" in self.source.text:
            self.source.undecided["U002"] = "it chooses Keras 2 (TF_USE_LEGACY_KERAS)"
            return
        for node in ast.walk(self.tree):
            for rule in RULES.get(type(node), ()):
                if node not in self.guarded:
                    rule(self, node)

    def _enter(self, node: ast.AST, scope: Scope, part: str, guarded: bool) -> None:
        self.scopes[node], self.parts[node] = scope, part
        if guarded:
            self.guarded.add(node)
        inner, name = scope.children.get(node, scope), part
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{part}.{node.name}" if part else node.name
        for field, value in ast.iter_fields(node):
            body = field == "body" or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.parents[child] = node
                    self._enter(child, inner if body else scope, name, guarded or _guards(node, field))

    def resolve(self, node: ast.AST) -> tuple[scopes.Value, ...]:
        """What an expression may stand for."""
        return scopes.resolve(node, self.scopes[node])

    def class_around(self, node: ast.AST) -> ClassInfo | None:
        """The class in whose body a method is defined."""
        scope = self.scopes[node]
        if not isinstance(scope.node, ast.ClassDef) or scope.parent is None:
            return None
        return scopes.class_info(scope.node, scope.parent)

    def method_around(self, node: ast.AST) -> ast.FunctionDef | None:
        """The method that a node stands in."""
        for scope in _around(self.scopes[node]):
            if isinstance(scope.node, ast.FunctionDef) and scope.parent and isinstance(scope.parent.node, ast.ClassDef):
                return scope.node
        return None

    def method_of(self, node: ast.AST) -> ClassInfo | None:
        """The class of the method that a node stands in."""
        method = self.method_around(node)
        return self.class_around(method) if method is not None else None

    def imports(self, name: str) -> bool:
        """Whether the module imports a library."""
        return name in self.imported

    @functools.cached_property
    def _patched(self) -> set[str]:
        nodes = [n for n in ast.walk(self.tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
        return {node.attr for node in nodes if any(isinstance(value, Thing) for value in self.resolve(node.value))}

    def patched(self, name: str) -> bool:
        """Whether the module itself gives a library an attribute of this name."""
        return name in self._patched

    def edit(self, node: Any, text: str, length: int | None = None) -> Edit:
        """The edit that writes another text over a node, or over its first bytes."""
        end = node.end_col_offset if length is None else node.col_offset + length
        return Edit(node.lineno, node.col_offset, end, text)

    def insert(self, node: Any, text: str) -> Edit:
        """The edit that writes a text before a node."""
        return Edit(node.lineno, node.col_offset, node.col_offset, text)

    def report(self, code: str, node: Any, message: str, *, edits: Iterable[Edit] = (), **more: str) -> None:
        """Note a problem at a node."""
        line = self.lines[node.lineno - 1].encode()
        column = len(line[: node.col_offset].decode(errors="replace")) + 1
        problem = Problem(
            code=code, line=node.lineno, column=column, part=self.parts.get(node, ""), message=message, edits=tuple(edits), **more
        )
        self.source.problems.append(problem)

    def end_of(self, node: Any, name: str, new: str) -> list[Edit]:
        """The edit that writes another last name at the end of an attribute."""
        return [Edit(node.end_lineno, node.end_col_offset - len(name.encode()), node.end_col_offset, new)]

    def _undefined_names(self) -> None:
        dynamic = {"exec", "globals", "vars", "locals"} & {
            node.func.id for node in ast.walk(self.tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        if dynamic and not dynamic <= {"locals"}:
            self.source.undecided["U001"] = f"names may be made by {', '.join(sorted(dynamic))}()"
            return
        by_jupyter = ("display", "get_ipython") if self.source.filename.endswith(".ipynb") else ()
        found = _Names(self.tree, filename=self.source.filename, builtins=by_jupyter).messages
        places = {(node.lineno, node.col_offset): node for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        deferred = _deferred_annotations(self.tree)
        for message in found:
            if isinstance(message, pyflakes.messages.UndefinedName):
                node = places.get((message.lineno, message.col))
                if node is not None and node not in self.guarded and node not in deferred:
                    self._undefined_name(node)

    def _undefined_name(self, node: ast.Name) -> None:
        scope, name = self.scopes[node], node.id
        if any(name in around.deleted for around in _around(scope)) or any(around.stars for around in _around(scope)):
            return
        nearest = keras_names.near(name, scope.names()) or keras_names.near(name, dir(builtins), 0.8)
        is_parameter = nearest is not None and nearest in _parameters(scope.node)
        certain = nearest is not None and keras_names.surely(name, nearest)
        # A misspelt parameter that Keras passes by name is mended where it stands.
        elsewhere = is_parameter and name in BY_NAME
        edits = (
            [Edit(node.lineno, node.col_offset, node.end_col_offset or 0, nearest)] if certain and nearest and not elsewhere else []
        )
        meant = f"; the parameter is {nearest!r}" if is_parameter else f"; {nearest!r} is near" if nearest else ""
        self.report(
            "U001",
            node,
            f"{name!r} is not defined{meant}",
            edits=edits,
            got=name,
            expected=nearest or "",
            mend=(f"call the parameter {name!r}" if elsewhere else f"write {nearest}") if nearest else "define it, or import it",
        )


def _parameters(function: ast.AST) -> set[str]:
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return set()
    arguments = function.args
    return {each.arg for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}


def _around(scope: Scope | None) -> Iterator[Scope]:
    while scope is not None:
        yield scope
        scope = scope.parent


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." if node.level else (node.module or "").partition(".")[0]]
    return []


def _deferred_annotations(tree: ast.Module) -> set[ast.AST]:
    """The nodes of annotations, where they are never evaluated."""
    futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    if not any(alias.name == "annotations" for node in futures for alias in node.names):
        return set()
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if annotation is not None:
                found |= set(ast.walk(annotation))
    return found


# Libraries whose objects are not Keras's.
_HARMLESS = ("matplotlib", "pandas", "scipy", "sklearn", "seaborn", "PIL")
_HANDLERS = {"AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "TypeError", "ValueError", "Exception"}
_TESTS = ("hasattr", "getattr", "version", "VERSION", "PY2", "PY3", "six", "TYPE_CHECKING", "backend")


def _guards(node: ast.AST, field: str) -> bool:
    """Whether a part of a statement runs only where the author has looked whether it can."""
    if isinstance(node, ast.FunctionDef) and field == "body":
        return any(test in word for each in node.decorator_list for word in _words(each) for test in _TESTS)
    if isinstance(node, ast.Try) and field in ("body", "handlers"):
        return any(handler.type is None or _HANDLERS & _words(handler.type) for handler in node.handlers)
    if isinstance(node, ast.With) and field == "body":
        return any("raises" in word.lower() or word == "suppress" for item in node.items for word in _words(item.context_expr))
    if isinstance(node, ast.If | ast.IfExp | ast.While) and field in ("body", "orelse"):
        return any(test in word for word in _words(node.test) for test in _TESTS)
    return isinstance(node, ast.BoolOp) and any(test in word for word in _words(node) for test in _TESTS)


def _words(node: ast.AST) -> set[str]:
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return names | {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def of_file(filename: str) -> Source | None:
    """What is wrong in a file that Python knows the lines of; None where it has none, or they are no Python."""
    linecache.checkcache(filename)
    text = "".join(linecache.getlines(filename))
    try:
        return read(text, filename) if text else None
    except SyntaxError:
        return None
