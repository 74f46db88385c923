"""What a name stands for in a piece of source, found by reading it.

Nothing of the source is run. Names are followed to the libraries that `libraries.py` knows, through imports, assignments and
classes, and no further: whatever else they may stand for is unknown, and unknown means that nothing is said. A name that is
bound in several ways stands for all of them, so that an attribute is missing only where each of them lacks it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from typing import Any

from kustom.checking.libraries import Thing, get, library

__all__ = ["ClassInfo", "Instance", "LocalInstance", "Scope", "Value", "class_info", "collect", "resolve"]


@dataclasses.dataclass(frozen=True)
class Instance:
    """Something made by calling a class of a library."""

    type: type


@dataclasses.dataclass(frozen=True, eq=False)
class ClassInfo:
    """A class that the source defines, and the scope it is defined in."""

    node: ast.ClassDef
    scope: Scope

    @functools.cached_property
    def bases(self) -> tuple[Thing | ClassInfo, ...] | None:
        """Its bases, or None where one of them is unknown."""
        found: list[Thing | ClassInfo] = []
        for base in self.node.bases:
            values = resolve(base, self.scope)
            if len(values) != 1 or not isinstance(values[0], Thing | ClassInfo) or values[0] is self:
                return None
            if isinstance(values[0], Thing) and not isinstance(values[0].object, type):
                return None
            found.append(values[0])
        return tuple(found)

    @functools.cached_property
    def libraries(self) -> tuple[type, ...] | None:
        """The library classes it derives from, its local bases' included; None where some base is unknown."""
        if self.bases is None:
            return None
        found: list[type] = []
        for base in self.bases:
            inherited = (base.object,) if isinstance(base, Thing) else base.libraries
            if inherited is None:
                return None
            found += inherited
        return tuple(found)

    def derives_from(self, *classes: type) -> bool:
        """Whether one of the library classes it derives from is one of these."""
        return any(issubclass(base, classes) for base in self.libraries or ())

    def methods(self) -> dict[str, ast.FunctionDef]:
        """The methods in its own body."""
        return {node.name: node for node in self.node.body if isinstance(node, ast.FunctionDef)}

    def defines(self, name: str) -> bool:
        """Whether its body, or that of a local base, gives this name a meaning."""
        own = name in self.inner.bindings or name in self.stored
        return own or any(isinstance(base, ClassInfo) and base.defines(name) for base in self.bases or ())

    @functools.cached_property
    def stored(self) -> dict[str, list[tuple[ast.expr | None, Scope]]]:
        """The attributes that its methods store on `self`, and what they store; None for what is not followed."""
        found: dict[str, list[tuple[ast.expr | None, Scope]]] = {}
        for method in self.methods().values():
            me, scope = _first(method), self.inner.children[method]
            followed: set[ast.AST] = set()
            for node in ast.walk(method):
                match node:
                    case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=name), attr=attribute) as target]) if name == me:
                        followed.add(target)
                        found.setdefault(attribute, []).append((node.value, scope))
                    case ast.Attribute(value=ast.Name(id=name), ctx=ast.Store()) if name == me and node not in followed:
                        found.setdefault(node.attr, []).append((None, scope))
        return found

    @property
    def inner(self) -> Scope:
        """The scope of its body."""
        return self.scope.children[self.node]


@dataclasses.dataclass(frozen=True)
class LocalInstance:
    """Something made by calling a class of the source, or `self` in one of its methods."""

    type: ClassInfo


@dataclasses.dataclass(frozen=True, eq=False)
class Self:
    """The first parameter of a method."""

    node: ast.ClassDef
    scope: Scope


Value = Thing | Instance | ClassInfo | LocalInstance
# What a name is bound to: a dotted path for an import, the node of a value, or None for what is not followed.
Binding = ast.AST | Self | str | None


@dataclasses.dataclass(eq=False)
class Scope:
    """A module, class or function: what is bound in it, and how.

    Names declared `global` or `nonlocal` are bound in the scope that they belong to.
    """

    node: ast.AST
    parent: Scope | None
    bindings: dict[str, list[Binding]] = dataclasses.field(default_factory=dict)
    children: dict[ast.AST, Scope] = dataclasses.field(default_factory=dict)
    redirected: dict[str, Scope] = dataclasses.field(default_factory=dict)
    deleted: set[str] = dataclasses.field(default_factory=set)
    stars: bool = False

    def bind(self, name: str, what: Binding) -> None:
        """Note that a name is bound here."""
        self.redirected.get(name, self).bindings.setdefault(name, []).append(what)

    def find(self, name: str) -> Scope | None:
        """The scope that a name is bound in, seen from here, or None."""
        scope: Scope | None = self
        while scope is not None:
            hidden = isinstance(scope.node, ast.ClassDef) and scope is not self
            if name in scope.redirected:
                return scope.redirected[name]
            if name in scope.bindings and not hidden:
                return scope
            scope = scope.parent
        return None

    def names(self) -> set[str]:
        """Every name that is bound here or in a scope around."""
        scope: Scope | None = self
        found: set[str] = set()
        while scope is not None:
            if not isinstance(scope.node, ast.ClassDef) or scope is self:
                found |= scope.bindings.keys()
            scope = scope.parent
        return found

    def top(self) -> Scope:
        """The module's scope."""
        return self if self.parent is None else self.parent.top()


def collect(tree: ast.Module) -> Scope:
    """The scope of a module, with those inside it."""
    scope = Scope(tree, None)
    _collect(tree.body, scope)
    return scope


def _collect(nodes: list[Any], scope: Scope) -> None:
    for node in nodes:
        _collect_one(node, scope)


def _collect_one(node: ast.AST, scope: Scope) -> None:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            inner = scope.children[node] = Scope(node, scope)
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            for argument in [*every, *(a for a in (arguments.vararg, arguments.kwarg) if a is not None)]:
                bound = isinstance(scope.node, ast.ClassDef) and isinstance(node, ast.FunctionDef) and argument.arg == _first(node)
                inner.bind(argument.arg, Self(scope.node, scope.parent) if bound and scope.parent else None)  # type: ignore[arg-type]
            _collect([*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)], scope)
            if isinstance(node, ast.Lambda):
                _collect([node.body], inner)
            else:
                scope.bind(node.name, node)
                _collect(node.decorator_list, scope)
                _collect(node.body, inner)
        case ast.ClassDef():
            scope.bind(node.name, node)
            inner = scope.children[node] = Scope(node, scope)
            _collect([*node.decorator_list, *node.bases, *(k.value for k in node.keywords)], scope)
            _collect(node.body, inner)
        case ast.Import():
            for alias in node.names:
                scope.bind(
                    alias.asname or alias.name.partition(".")[0], alias.name if alias.asname else alias.name.partition(".")[0]
                )
        case ast.ImportFrom():
            for alias in node.names:
                if alias.name == "*":
                    scope.stars = True
                else:
                    path = None if node.level else f"{node.module}.{alias.name}"
                    scope.bind(alias.asname or alias.name, path)
        case ast.Assign(targets=[ast.Name(id=name)]):
            scope.bind(name, node.value)
            _collect([node.value], scope)
        case ast.AnnAssign(target=ast.Name(id=name)):
            scope.bind(name, node.value)
            _collect([node.value] if node.value is not None else [], scope)
        case ast.Global() | ast.Nonlocal():
            for name in node.names:
                home = scope.top() if isinstance(node, ast.Global) else (scope.parent.find(name) if scope.parent else None)
                if home is not None and home is not scope:
                    scope.redirected[name] = home
        case ast.Name(ctx=ast.Store()):
            scope.bind(node.id, None)
        case ast.Name(ctx=ast.Del()):
            scope.deleted.add(node.id)
        case _:
            if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                scope.bind(node.name, None)
            if isinstance(node, ast.MatchMapping) and node.rest:
                scope.bind(node.rest, None)
            _collect(list(ast.iter_child_nodes(node)), scope)


def _first(method: ast.FunctionDef) -> str:
    """The name of a method's `self`; empty where it has none."""
    arguments = [*method.args.posonlyargs, *method.args.args]
    decorated = {node.id for node in method.decorator_list if isinstance(node, ast.Name)}
    return arguments[0].arg if arguments and not decorated & {"staticmethod", "classmethod"} else ""


def resolve(node: ast.AST, scope: Scope, _seen: frozenset[int] = frozenset()) -> tuple[Value, ...]:
    """What an expression may stand for; nothing where that is unknown."""
    if id(node) in _seen or len(_seen) > 40:
        return ()
    seen = _seen | {id(node)}
    match node:
        case ast.Name():
            return _named(node.id, scope, seen)
        case ast.Attribute():
            return _each(resolve(node.value, scope, seen), lambda value: _attribute(value, node.attr, seen))
        case ast.Call():
            return _each(resolve(node.func, scope, seen), _made)
    return ()


def _each(values: tuple[Value, ...], step: Any) -> tuple[Value, ...]:
    found: list[Value] = []
    for value in values:
        result = step(value)
        if not result:
            return ()
        found += result
    return tuple(found)


def _named(name: str, scope: Scope, seen: frozenset[int]) -> tuple[Value, ...]:
    home = scope.find(name)
    if home is None:
        return ()
    found: list[Value] = []
    for what in home.bindings.get(name, ()):
        if isinstance(what, ast.Constant) and what.value is None:
            continue  # `torch = None`, where the import failed
        values = _bound(what, home, seen)
        if not values:
            return ()
        found += values
    return tuple(found)


def _bound(what: Binding, home: Scope, seen: frozenset[int]) -> tuple[Value, ...]:
    match what:
        case None:
            return ()
        case str():
            thing = library(what)
            return (thing,) if thing is not None else ()
        case Self():
            return (LocalInstance(class_info(what.node, what.scope)),)
        case ast.ClassDef():
            return (class_info(what, home),)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return ()
    return resolve(what, home, seen)


@functools.lru_cache(maxsize=4096)
def class_info(node: ast.ClassDef, scope: Scope) -> ClassInfo:
    """The class of a definition, the same one each time."""
    return ClassInfo(node, scope)


def _attribute(value: Value, name: str, seen: frozenset[int]) -> tuple[Value, ...]:
    if isinstance(value, Thing):
        # An object of a library may make its attributes as they are asked for.
        if not inspect.ismodule(value.object) and not isinstance(value.object, type):
            return ()
        found_there = get(value.object, name)
        return (Thing(found_there, f"{value.path}.{name}"),) if found_there is not None else ()
    if isinstance(value, LocalInstance):
        stored = value.type.stored.get(name)
        if not stored or any(node is None for node, _ in stored):
            return ()
        found: list[Value] = []
        for node, scope in stored:
            values = resolve(node, scope, seen) if node is not None else ()
            if not values:
                return ()
            found += values
        return tuple(found)
    return ()


def _made(value: Value) -> tuple[Value, ...]:
    if isinstance(value, ClassInfo):
        return (LocalInstance(value),)
    if isinstance(value, Thing) and isinstance(value.object, type):
        return (Instance(value.object),)
    return ()
