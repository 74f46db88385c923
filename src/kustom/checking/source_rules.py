"""What is wrong with a name, a call or a parameter: one function for each kind of node, asked of every node of a module.

A rule speaks only where all that the node may stand for is known. What is unknown, since it comes from elsewhere, is left
to the checks that run the part.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras

from kustom.checking import keras_names
from kustom.checking.libraries import Thing, has, is_internal, library, longest
from kustom.checking.scopes import ClassInfo, Instance, LocalInstance

if TYPE_CHECKING:
    from kustom.checking.sources import Reader

__all__ = ["BY_NAME", "RULES"]

# What Keras passes by name, so that a misspelling is a parameter that nobody sets: by the class and its method.
_PASSED: tuple[tuple[tuple[type, ...], str, tuple[str, ...]], ...] = (
    ((keras.layers.Layer,), "call", ("training", "mask")),
    ((keras.metrics.Metric,), "update_state", ("sample_weight",)),
    ((keras.losses.Loss,), "__call__", ("sample_weight",)),
    ((keras.initializers.Initializer,), "__call__", ("dtype",)),
    ((keras.Model,), "compute_loss", ("sample_weight", "training")),
)
BY_NAME = ("training", "mask", "sample_weight", "dtype")
# Methods whose parameters after `self` are shapes; in Keras 3 a shape is a tuple.
_OF_SHAPES = ("build", "compute_output_shape")


def imported_name(reader: Reader, node: ast.ImportFrom) -> None:
    """`from keras.layers import Dens`."""
    if node.level or not node.module:
        return
    broken, module = longest(node.module), library(node.module)
    if broken is not None:
        _missing(reader, node, *broken, [])
    if module is None:
        return
    for alias in node.names:
        if alias.name != "*" and inspect.ismodule(module.object) and not has(module.object, alias.name):
            nearest = keras_names.near(alias.name, dir(module.object))
            edits = []
            if nearest and keras_names.surely(alias.name, nearest):
                bound = alias.asname or alias.name
                edits = [reader.edit(alias, f"{nearest} as {bound}")]
            _missing(reader, alias, module, alias.name, edits)


def imported_module(reader: Reader, node: ast.Import) -> None:
    """`import keras.layer`."""
    for alias in node.names:
        broken = longest(alias.name)
        if broken is not None:
            _missing(reader, node, *broken, [])


def attribute(reader: Reader, node: ast.Attribute) -> None:
    """`tf.zeors_like`, `keras.model.load_model`, `precision.reset_states`, `self.add_metric`."""
    if not isinstance(node.ctx, ast.Load):
        return
    values = reader.resolve(node.value)
    if values and all(isinstance(value, Thing) and inspect.ismodule(value.object) for value in values):
        modules = [value for value in values if isinstance(value, Thing)]
        if not any(has(module.object, node.attr) for module in modules) and not reader.patched(node.attr):
            moved = keras_names.moved(modules[0], node.attr)
            nearest = moved or keras_names.near(node.attr, dir(modules[0].object))
            certain = nearest is not None and (moved is not None or keras_names.surely(node.attr, nearest))
            _missing(reader, node, modules[0], node.attr, reader.end_of(node, node.attr, nearest) if certain and nearest else [])
        return
    if node.attr in reader.stored or node.attr in reader.defined or node.attr.startswith("__"):
        return
    if any(isinstance(value, LocalInstance) and value.type.defines(node.attr) for value in values):
        return
    if values:
        known = [_attributes(value) for value in values]
        if any(names is None or node.attr in names for names in known):
            return
        every = frozenset().union(*(names or () for names in known))
        gone = keras_names.removed(node.attr)
        nearest = gone[0] if gone else keras_names.near(node.attr, every, 0.8)
        if gone or nearest:
            _gone(reader, node, _name_of(values[0]), nearest, gone)
    elif node.attr == "reset_states" and reader.closed:
        _gone(reader, node, "a Keras 3 object", "reset_state", keras_names.removed(node.attr))


def call(reader: Reader, node: ast.Call) -> None:
    """The arguments of a call, and the texts that name a part."""
    _as_list(reader, node)
    values = reader.resolve(node.func)
    function, owner = _function(reader, node, values)
    if function is not None:
        if owner is not None and getattr(function, "__name__", "") in ("add_weight", "add_variable"):
            _name_by_position(reader, node, function)
        names = keras_names.accepted(function)
        for keyword in node.keywords:
            if names is not None and keyword.arg is not None and keyword.arg not in names:
                _unknown_argument(reader, keyword, function, names)
    elif values and all(isinstance(value, Instance | LocalInstance) for value in values):
        _misspelt_argument(reader, node, values)
    compiles = isinstance(node.func, ast.Attribute) and node.func.attr == "compile" and reader.imports_keras
    if function is not None or (compiles and {"optimizer", "loss"} & {keyword.arg for keyword in node.keywords}):
        _names_in_text(reader, node, function)


def parameters(reader: Reader, node: ast.FunctionDef) -> None:
    """`def call(self, x, trianing=None)`."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    taken = {argument.arg for argument in given}
    for wanted in _passed_by_name(reader, node):
        if wanted in taken:
            continue
        for argument in given:
            if _near_miss(argument.arg, wanted):
                uses = [each for each in ast.walk(node) if isinstance(each, ast.Name) and each.id == argument.arg]
                reader.report(
                    "U004",
                    argument,
                    f"the parameter {argument.arg!r} of {node.name} is never set: Keras passes {wanted!r} by name",
                    got=argument.arg,
                    expected=wanted,
                    mend=f"call it {wanted}",
                    edits=[reader.edit(argument, wanted, len(argument.arg.encode())), *(reader.edit(use, wanted) for use in uses)],
                )


RULES: dict[type, tuple[Callable[[Any, Any], None], ...]] = {
    ast.ImportFrom: (imported_name,),
    ast.Import: (imported_module,),
    ast.Attribute: (attribute,),
    ast.Call: (call,),
    ast.FunctionDef: (parameters,),
}


def _missing(reader: Reader, node: Any, module: Thing, name: str, edits: list[Any]) -> None:
    if is_internal(module.object):
        return
    ours = keras_names.is_keras(module.object)
    moved = ours and name in keras_names.MOVED
    nearest = keras_names.moved(module, name) or keras_names.near(name, dir(module.object))
    hint = f"; {nearest!r} is near" if nearest else ""
    hint = (f"; it is {nearest!r}" if nearest else "; Keras 3 has none") if moved else hint
    path = ast.unparse(node.value) if isinstance(node, ast.Attribute) else module.path
    reader.report(
        "U002" if moved else "U003",
        node,
        f"{path} has no attribute {name!r}{hint}",
        got=f"{path}.{name}",
        expected=f"{path}.{nearest}" if nearest else "",
        mend=f"write {path}.{nearest}" if nearest else "look it up in the library's reference",
        edits=edits,
    )


def _gone(reader: Reader, node: ast.Attribute, owner: str, nearest: str | None, gone: tuple[str | None, str] | None) -> None:
    reader.report(
        "U002" if gone else "U003",
        node,
        f"{owner} has no {node.attr!r}" + (f" in Keras 3: {gone[1]}" if gone else f"; {nearest!r} is near"),
        got=node.attr,
        expected=nearest or "",
        mend=gone[1] if gone and not nearest else f"write {nearest}",
        edits=reader.end_of(node, node.attr, nearest) if nearest else (),
    )


def _attributes(value: Any) -> frozenset[str] | None:
    """The attributes of an instance, or None where they cannot be told."""
    if isinstance(value, Instance):
        return keras_names.attributes(value.type) if keras_names.is_keras(value.type) else None
    if not isinstance(value, LocalInstance) or value.type.libraries is None or value.type.defines("__getattr__"):
        return None
    libraries = [base for base in value.type.libraries if base is not object]
    if not libraries or not all(keras_names.is_keras(base) for base in libraries):
        return None
    found = [keras_names.attributes(base) for base in libraries]
    return None if None in found else frozenset().union(*(names or () for names in found))


def _name_of(value: Any) -> str:
    if isinstance(value, LocalInstance):
        return value.type.node.name
    return f"keras's {value.type.__name__}"


def _function(reader: Reader, node: ast.Call, values: tuple[Any, ...]) -> tuple[Any, type | None]:
    """The function or class of Keras that is called, and the class whose method it is."""
    if len(values) == 1 and isinstance(values[0], Thing):
        thing = values[0].object
        return (thing, None) if keras_names.is_keras(thing) and callable(thing) else (None, None)
    if not isinstance(node.func, ast.Attribute):
        return None, None
    if isinstance(node.func.value, ast.Call) and getattr(node.func.value.func, "id", "") == "super":
        return _inherited(reader, node, node.func.attr)
    owners = reader.resolve(node.func.value)
    if len(owners) != 1:
        return None, None
    owner = owners[0]
    if isinstance(owner, LocalInstance) and not owner.type.defines(node.func.attr):
        libraries = [base for base in owner.type.libraries or () if hasattr(base, node.func.attr)]
        owner = Instance(libraries[0]) if len(libraries) == 1 else owner
    if isinstance(owner, Instance) and keras_names.is_keras(owner.type):
        function = inspect.getattr_static(owner.type, node.func.attr, None)
        return (function, owner.type) if inspect.isfunction(function) else (None, None)
    return None, None


def _inherited(reader: Reader, node: ast.Call, name: str) -> tuple[Any, type | None]:
    """The method of Keras that `super().name` is, where the class has one base, of Keras."""
    cls = reader.method_of(node)
    if cls is None or cls.bases is None or len(cls.bases) != 1 or not isinstance(cls.bases[0], Thing):
        return None, None
    base = cls.bases[0].object
    if not keras_names.is_keras(base):
        return None, None
    if name == "__init__":
        return base, None
    function = inspect.getattr_static(base, name, None)
    return (function, base) if inspect.isfunction(function) else (None, None)


def _unknown_argument(reader: Reader, keyword: ast.keyword, function: Any, names: frozenset[str]) -> None:
    name = str(keyword.arg)
    nearest = keras_names.removed_argument(name, names)
    reader.report(
        "U002",
        keyword,
        f"{getattr(function, '__name__', function)} takes no argument {name!r}"
        + (f"; it is called {nearest!r}" if nearest else ""),
        got=f"{name}=",
        expected=f"{nearest}=" if nearest else "",
        mend=f"write {nearest}=" if nearest else "leave it out; Keras 3 has no such argument",
        edits=[reader.edit(keyword, nearest, len(name.encode()))] if nearest else [],
    )


def _misspelt_argument(reader: Reader, node: ast.Call, values: tuple[Any, ...]) -> None:
    """`layer(x, trianing=True)`."""
    for keyword in node.keywords:
        for wanted in BY_NAME:
            if keyword.arg and _near_miss(keyword.arg, wanted) and all(_takes(v, keyword.arg, wanted) for v in values):
                reader.report(
                    "U004",
                    keyword,
                    f"{keyword.arg!r} is passed by name to {_name_of(values[0])}, whose parameter is {wanted!r}",
                    got=f"{keyword.arg}=",
                    expected=f"{wanted}=",
                    mend=f"write {wanted}=",
                    edits=[reader.edit(keyword, wanted, len(keyword.arg.encode()))],
                )


def _takes(value: Any, name: str, wanted: str) -> bool:
    """Whether calling something takes `wanted` and not `name`."""
    if isinstance(value, LocalInstance):
        method = value.type.methods().get("call")
        if method is None or method.args.kwarg is not None:
            return False
        taken = {a.arg for a in [*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs]}
        return wanted in taken and name not in taken
    if not keras_names.is_keras(value.type) or not hasattr(value.type, "call"):
        return False
    taken = keras_names.accepted(value.type.call) or frozenset()
    return wanted in taken and name not in taken


def _name_by_position(reader: Reader, node: ast.Call, function: Any) -> None:
    """`self.add_weight("total")`, and `self.add_weight("kernel", (3, 2))`."""
    first = node.args[0] if node.args else None
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str) or any(k.arg == "name" for k in node.keywords):
        return
    edits = [reader.insert(first, "name=")]
    if len(node.args) == 2 and not any(k.arg == "shape" for k in node.keywords):
        edits.append(reader.insert(node.args[1], "shape="))
    reader.report(
        "U002",
        first,
        f"{function.__name__} takes the name by keyword: its first argument is the shape, not {first.value!r}",
        got=f'{function.__name__}("{first.value}")',
        expected=f'{function.__name__}(name="{first.value}")',
        mend=f'write name="{first.value}"',
        edits=edits if len(node.args) <= 2 else [],
    )


def _as_list(reader: Reader, node: ast.Call) -> None:
    """`input_shape.as_list()`, where Keras 3 hands a tuple."""
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "as_list" or node.args or node.keywords:
        return
    shape = node.func.value
    method = reader.method_around(node)
    cls = reader.method_of(node)
    if cls is None or method is None or not cls.derives_from(keras.layers.Layer):
        return
    of_shapes = isinstance(shape, ast.Name) and method.name in _OF_SHAPES and shape.id in {a.arg for a in method.args.args[1:]}
    of_a_weight = isinstance(shape, ast.Attribute) and shape.attr == "shape" and _is_a_weight(shape.value, cls)
    without_tensorflow = isinstance(shape, ast.Attribute) and shape.attr == "shape" and not reader.imports("tensorflow")
    if of_shapes and _rebound(method, shape):
        return
    if of_shapes or of_a_weight or (without_tensorflow and method.name in ("call", *_OF_SHAPES)):
        text = ast.unparse(shape)
        reader.report(
            "U002",
            node,
            f"{text} is a tuple in Keras 3, which has no as_list",
            got=f"{text}.as_list()",
            expected=f"list({text})",
            mend=f"write list({text})",
            edits=[reader.insert(shape, "list("), *reader.end_of(node, ".as_list()", ")")],
        )


def _is_a_weight(node: ast.expr, cls: ClassInfo) -> bool:
    """Whether an expression is an attribute of `self` that `add_weight` made."""
    if not isinstance(node, ast.Attribute):
        return False
    stored = [value for value, _ in cls.stored.get(node.attr, ())]
    return bool(stored) and all(
        isinstance(v, ast.Call) and isinstance(v.func, ast.Attribute) and v.func.attr == "add_weight" for v in stored
    )


def _rebound(method: ast.FunctionDef, shape: ast.expr) -> bool:
    """Whether the parameter has been made something else, such as a `tf.TensorShape`, or is asked what it is."""
    name = getattr(shape, "id", "")
    stored = any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store) for n in ast.walk(method))
    asked = any(isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("isinstance", "hasattr") for n in ast.walk(method))
    return stored or asked


def _names_in_text(reader: Reader, node: ast.Call, function: Any) -> None:
    """`compile(optimizer="namdam")`, `Dense(4, activation="rleu")`, `keras.losses.get("hubre")`."""
    for family, text in _texts(node, function):
        if keras_names.knows(family, text.value):
            continue
        nearest = keras_names.nearest_name(family, text.value)
        registered = text.value in reader.defined or reader.texts.count(text.value) > 1 or "regist" in reader.source.text
        if registered or not (nearest or reader.closed):
            continue
        certain = nearest is not None and keras_names.surely(text.value, nearest)
        reader.report(
            "U002",
            text,
            f"Keras knows no {family} {text.value!r}" + (f"; {nearest!r} is near" if nearest else ""),
            got=repr(text.value),
            expected=repr(nearest) if nearest else "",
            mend=f'write "{nearest}"' if nearest else f"give the {family} itself",
            edits=[reader.edit(text, repr(nearest))] if certain else [],
        )


def _texts(node: ast.Call, function: Any) -> Iterator[tuple[str, Any]]:
    for keyword in node.keywords:
        family = keras_names.family_of(keyword.arg or "")
        values = keyword.value.elts if isinstance(keyword.value, ast.List | ast.Tuple) else [keyword.value]
        for value in values:
            if family and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield family, value
    first = node.args[0] if node.args else None
    if function is not None and isinstance(first, ast.Constant) and isinstance(first.value, str):
        if function is keras.layers.Activation:
            yield "activation", first
        for family in keras_names.FAMILIES:
            if function is keras_names.FAMILIES[family].get:
                yield family, first


def _passed_by_name(reader: Reader, node: ast.FunctionDef) -> tuple[str, ...]:
    cls = reader.class_around(node)
    if cls is not None:
        return tuple(n for classes, method, names in _PASSED if method == node.name and cls.derives_from(*classes) for n in names)
    for decorator in node.decorator_list:
        maker = decorator.func if isinstance(decorator, ast.Call) else decorator
        for value in reader.resolve(maker):
            if isinstance(value, Thing) and value.path in ("kustom.layer", "kustom.initializer"):
                return ("training", "mask") if value.path == "kustom.layer" else ("dtype",)
    return ()


def _near_miss(name: str, wanted: str) -> bool:
    """Whether a name is another one misspelt: two letters off at most, in a short one letters that are swapped or left out."""
    if name == wanted:
        return False
    if len(wanted) < 8:
        return sorted(name) == sorted(wanted) or any(wanted[:i] + wanted[i + 1 :] == name for i in range(len(wanted)))
    return keras_names.distance(name.lower(), wanted) <= 2
