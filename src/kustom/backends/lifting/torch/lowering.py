"""A recording as something that runs: the text of a graph for torch's own interpreter, or of a Python function.

The interpreter is that of TorchScript, fed with a graph directly: nothing of the deprecated front end (`torch.jit.script`,
`torch.jit.trace`) takes part, and nothing is fused or specialized, so that each operation gives the numbers that it gives in
Python. It runs many steps in one call. Where it is gone, or knows an operation otherwise, the Python function takes its place.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch

from kustom.backends.lifting.torch.recording import Call, Node, Recording, Value, values_in

__all__ = ["NotLowered", "Python", "Script"]

_READ = torch.ops.aten._local_scalar_dense.default
_functions: dict[int, Callable[[list[Any]], list[Any]]] = {}
_slots = itertools.count()

# How the interpreter's graph calls back into Python.
_library = torch.library.Library("kustom", "DEF")
_library.define("call(Tensor(a!)[] tensors, int slot) -> Tensor[]")
_library.impl("call", lambda tensors, slot: _functions[slot](tensors), "CompositeExplicitAutograd")


class NotLowered(Exception):
    """The interpreter has no way to say this operation."""


def _callback(node: Node) -> tuple[Callable[[list[Any]], list[Any]], list[Value]]:
    """An operation that is a Python function, or draws by a seed, as a function of a list of tensors."""
    if isinstance(node.func, Call):
        return node.func.f, list(node.args[0])
    values = [node.seed, *values_in((node.args, tuple(node.kwargs.values())))]
    generator = torch.Generator(node.kwargs["generator"].device)
    func, args = node.func._op, node.args
    kwargs = {**node.kwargs, "generator": generator}
    single = node.single

    def fill(structure: Any, tensors: Any) -> Any:
        if isinstance(structure, Value):
            return next(tensors)
        if isinstance(structure, list | tuple):
            return [fill(each, tensors) for each in structure]
        return structure

    def draw(tensors: list[Any]) -> list[Any]:
        generator.manual_seed(int(tensors[0]) & 0xFFFFFFFF)
        rest = iter(tensors[1:])
        given = fill(args, rest)
        out = func(*given, **{name: fill(value, rest) for name, value in kwargs.items()})
        return [] if node.written else [out] if single else list(out)

    return draw, [value for value in values if value is not None]


class _Names:
    """A name for each value, and what the names mean that are given from outside."""

    def __init__(self, recording: Recording) -> None:
        self.of: dict[Value, str] = {}
        self.constants: dict[str, Any] = {}
        for kind, values in (("s", recording.state), ("x", recording.inputs)):
            for i, value in enumerate(values):
                self.of[value] = f"{kind}{i}"

    def __call__(self, value: Value) -> str:
        if value not in self.of:
            if value.kind == "constant":
                self.constants[f"c{len(self.constants)}"] = value.tensor
                self.of[value] = f"c{len(self.constants) - 1}"
            else:
                self.of[value] = f"v{len(self.of)}"
        return self.of[value]


class Python:
    """The steps as a Python function, which a compiler of torch's may compile.

    Args:
        recording: What is done.
        results: What of it is returned.
        compiler: None, or one of `torch.compile`'s.
        note: Given every tensor that is made, right after it is, in the order of the recording.
    """

    def __init__(
        self,
        recording: Recording,
        results: list[Value],
        *,
        compiler: str | None = None,
        note: Callable[[Any], None] | None = None,
    ) -> None:
        # The compiler knows an overload, and Python is quicker without what torch puts around it.
        self._plain = compiler is None
        names = _Names(recording)
        self._scope: dict[str, Any] = {}
        last: dict[Value, int] = {}
        for position, node in enumerate(recording.nodes):
            for value in (*node.values(), *values_in(node.outputs)):
                last[value] = position
        lines = []
        for position, node in enumerate(recording.nodes):
            lines.append(self._line(node, names))
            if note is not None:
                lines += [f"{self._bind(note)}({names(value)})" for value in values_in(node.outputs)]
            dead = [value for value, at in last.items() if at == position and value.kind == "made" and value not in results]
            if dead:
                lines.append("del " + ", ".join(names(value) for value in dead if value in names.of))
        lines.append(f"return [{', '.join(names(value) for value in results)}]")
        heads = [*(f"s{i}" for i in range(len(recording.state))), *(f"x{i}" for i in range(len(recording.inputs)))]
        text = f"def step({', '.join(heads)}):\n" + "\n".join(f"    {line}" for line in lines)
        self._scope |= names.constants
        exec(compile(text, "<kustom step>", "exec"), self._scope)
        self.text = text
        self.step = self._scope["step"]
        if compiler is not None:
            # The same random numbers as without it.
            self.step = torch.compile(self.step, backend=compiler, dynamic=False, options={"fallback_random": True})

    def _line(self, node: Node, names: _Names) -> str:
        outs = ", ".join("_" if value is None else names(value) for value in node.outputs)
        if isinstance(node.func, Call) or node.seed is not None:
            f, values = _callback(node)
            call = f"{self._bind(f)}([{', '.join(names(value) for value in values)}])"
            return f"[{outs}] = {call}" if outs and not node.written else call
        if node.func is _READ:
            return f"{outs} = {names(node.args[0])}.item()"
        args = [self._argument(each, names) for each in node.args]
        args += [f"{name}={self._argument(value, names)}" for name, value in node.kwargs.items()]
        call = f"{self._bind(node.func._op if self._plain else node.func)}({', '.join(args)})"
        if not any(value is not None for value in node.outputs):
            return call
        return f"{outs} = {call}" if node.single else f"({outs},) = {call}"

    def _argument(self, argument: Any, names: _Names) -> str:
        if isinstance(argument, Value):
            return names(argument)
        if isinstance(argument, list | tuple):
            return f"[{', '.join(self._argument(each, names) for each in argument)}]"
        if argument is None or isinstance(argument, bool | int | str) or (isinstance(argument, float) and math.isfinite(argument)):
            return repr(argument)
        return self._bind(argument)

    def _bind(self, thing: Any) -> str:
        name = f"f{len(self._scope)}"
        self._scope[name] = thing
        return name

    def run(self, state: list[Any], inputs: list[Any], generators: list[Any]) -> list[Any]:
        """One step."""
        return self.step(*state, *inputs)

    def loop(self, state: Any, data: list[Any], rows: Any, start: int, count: int, totals: list[Any], generators: Any) -> None:
        """Many steps."""
        step, many = self.step, len(totals)
        for i in range(start, start + count):
            batch = [a[i] for a in data] if rows is None else [a.index_select(0, rows[i]) for a in data]
            for total, out in zip(totals, step(*state, *batch)[:many], strict=True):
                total.add_(out)


_DTYPES = {
    **{torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4},
    **{torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15},
    **{torch.complex64: 9, torch.complex128: 10, torch.bool: 11},
}
_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2, torch.channels_last_3d: 3}


class Script:
    """The steps as graphs of torch's own interpreter."""

    def __init__(self, recording: Recording, results: list[Value]) -> None:
        self._names = names = _Names(recording)
        self._many = (len(recording.state), len(recording.inputs))
        self._generators = recording.generators
        self._fixed: dict[Any, str] = {}
        self._heads: list[str] = []
        self._fresh = itertools.count()
        slots: list[int] = []
        self._slots = slots
        weakref.finalize(self, _forget, slots)
        self._lines: list[str] = []
        for node in recording.nodes:
            self._emit(node)
        self._results = [f"%{names(value)}" for value in results]
        self._constants = list(names.constants.values())
        self._run: Any = None
        self._loops: dict[tuple[bool, int], Any] = {}
        self._run = self._function(
            [*self._lines, f"%out : Tensor[] = prim::ListConstruct({', '.join(self._results)})"], [], "%out", batch=True
        )

    def _function(self, lines: list[str], more: list[str], out: str, *, batch: bool) -> Any:
        states, inputs = self._many
        heads = [f"%s{i} : Tensor" for i in range(states)]
        heads += [f"%c{i} : Tensor" for i in range(len(self._constants))]
        heads += [f"%g{i} : Generator" for i in range(len(self._generators))]
        heads += [f"%x{i} : Tensor" for i in range(inputs)] if batch else []
        body = "\n  ".join([*self._heads, *lines])
        text = f"graph({', '.join([*heads, *more])}):\n  {body}\n  return ({out})"
        graph = torch._C.parse_ir(text)
        for node in _nodes(graph):
            if node.schema() == "(no schema)" and not node.kind().startswith("prim::"):
                raise NotLowered(str(node).strip())
        return _unoptimized(torch._C._create_function_from_graph("step", graph))

    def _emit(self, node: Node) -> None:
        names = self._names
        outs = [f"%{names(value)}" if value is not None else f"%_{next(self._fresh)}" for value in node.outputs]
        if isinstance(node.func, Call) or node.seed is not None:
            f, values = _callback(node)
            slot = next(_slots)
            _functions[slot] = f
            self._slots.append(slot)
            tensors = self._list([f"%{names(value)}" for value in values], "Tensor")
            outs = [] if node.written else outs
            self._lines += self._unpacked(outs, f"kustom::call({tensors}, {self._constant(slot)})")
            return
        if node.func is _READ:
            self._lines.append(f"{outs[0]} : Scalar = aten::item(%{names(node.args[0])})")
            return
        schema = node.func._schema
        args = []
        for place, spec in enumerate(schema.arguments):
            if place < len(node.args):
                given = node.args[place]
            elif spec.name in node.kwargs:
                given = node.kwargs[spec.name]
            else:
                given = spec.default_value
            args.append(self._argument(given, spec.type, node, place))
        call = f"{schema.name}({', '.join(args)})"
        kinds = [str(each.type) for each in schema.returns]
        if kinds in (["List[Tensor]"], ["Tensor[]"]):
            self._lines += self._unpacked(outs, call)
        elif not kinds:
            self._lines.append(call)
        elif len(kinds) != len(outs) or any(kind != "Tensor" for kind in kinds):
            for name, kind in zip(outs, kinds, strict=True):
                if kind not in ("Tensor", "int"):
                    raise NotLowered(f"{schema}: {name}")
            self._lines.append(", ".join(f"{n} : {k}" for n, k in zip(outs, kinds, strict=True)) + f" = {call}")
        else:
            self._lines.append(", ".join(f"{name} : Tensor" for name in outs) + f" = {call}")

    def _unpacked(self, outs: list[str], call: str) -> list[str]:
        name = f"%_{next(self._fresh)}"
        lines = [f"{name} : Tensor[] = {call}"]
        if outs:
            lines.append(", ".join(f"{out} : Tensor" for out in outs) + f" = prim::ListUnpack({name})")
        return lines

    def _list(self, items: list[str], kind: str) -> str:
        name = f"%_{next(self._fresh)}"
        self._lines.append(f"{name} : {kind}[] = prim::ListConstruct({', '.join(items)})")
        return name

    def _argument(self, given: Any, kind: Any, node: Node, place: int) -> str:
        if isinstance(given, Value):
            return f"%{self._names(given)}"
        while kind.kind() == "OptionalType" and given is not None:
            kind = kind.getElementType()
        kind_name = kind.kind()
        if kind_name == "ListType" and given is not None:
            element = kind.getElementType()
            if not isinstance(given, list | tuple):
                given = [given]
            if any(isinstance(each, Value) for each in given) or element.kind() in ("TensorType", "OptionalType"):
                items = [self._argument(each, element, node, place) for each in given]
                return self._list(items, "Tensor?" if element.kind() == "OptionalType" else "Tensor")
            numbers = [float(each) if element.kind() == "FloatType" else each for each in given]
            return self._numbers(numbers, {"FloatType": "float", "BoolType": "bool"}.get(element.kind(), "int"))
        if kind_name == "TensorType" and isinstance(given, bool | int | float):
            return self._number(given, node, place)
        if kind_name == "FloatType" and isinstance(given, int):
            given = float(given)
        if kind_name == "GeneratorType" and given is not None:
            at = next(i for i, generator in enumerate(self._generators) if generator._cdata == given._cdata)
            return f"%g{at}"
        return self._constant(given)

    def _number(self, given: Any, node: Node, place: int) -> str:
        """A number where the operation takes a tensor: by an overload that takes a number, else by a tensor."""
        name, spec = node.func._schema.name, node.func._schema.arguments
        for schema in torch._C._jit_get_schemas_for_operator(name):
            kinds = [each.type.kind() for each in schema.arguments]
            wanted = [each.type.kind() for each in spec]
            wanted[place] = "NumberType"
            if kinds == wanted:
                return self._constant(given)
        others = [value.like.dtype for value in node.values() if value.like.dim()]
        dtype = others[0] if others else next(value.like.dtype for value in (*values_in(node.outputs), *node.values()))
        if isinstance(given, float) and not dtype.is_floating_point and not dtype.is_complex:
            raise NotLowered(f"{name} of {given}")
        key = ("tensor", type(given), repr(given), dtype)
        if key not in self._fixed:
            tensor = torch.tensor(given, dtype=torch.float32 if dtype in (torch.float16, torch.bfloat16) and others else dtype)
            value = Value("constant", tensor, None)  # type: ignore[arg-type]
            self._fixed[key] = f"%{self._names(value)}"
        return self._fixed[key]

    def _numbers(self, given: list[Any], kind: str) -> str:
        key = (kind, repr(given))
        if key not in self._fixed:
            name = self._fixed[key] = f"%k{len(self._fixed)}"
            if given and kind != "bool":
                self._heads.append(f"{name} : {kind}[] = prim::Constant[value=[{', '.join(map(repr, given))}]]()")
            else:
                items = ", ".join(self._constant(each) for each in given)
                self._heads.append(f"{name} : {kind}[] = prim::ListConstruct({items})")
        return self._fixed[key]

    def _constant(self, given: Any) -> str:
        if isinstance(given, torch.dtype):
            given = _DTYPES.get(given, given)
        elif isinstance(given, torch.memory_format):
            given = _FORMATS[given]
        elif given is torch.strided:
            given = 0
        key = (type(given), repr(given))
        if key in self._fixed:
            return self._fixed[key]
        if given is None:
            text = "NoneType = prim::Constant()"
        elif isinstance(given, bool):
            text = f"bool = prim::Constant[value={int(given)}]()"
        elif isinstance(given, int):
            text = f"int = prim::Constant[value={given}]()"
        elif isinstance(given, float) and math.isfinite(given):
            text = f"float = prim::Constant[value={given!r}]()"
        elif isinstance(given, float):
            # The text knows no infinity.
            one, zero = self._constant(1.0 if given > 0 else -1.0), self._constant(0.0)
            text = f"float = aten::div({zero if given != given else one}, {zero})"
            raise NotLowered(f"{given} as a number: {text}")
        elif isinstance(given, str | torch.device):
            text = f'{"str" if isinstance(given, str) else "Device"} = prim::Constant[value="{given}"]()'
        else:
            raise NotLowered(repr(given))
        name = self._fixed[key] = f"%k{len(self._fixed)}"
        self._heads.append(f"{name} : {text}")
        return name

    def run(self, state: list[Any], inputs: list[Any], generators: list[Any]) -> list[Any]:
        """One step."""
        return self._run(*state, *self._constants, *generators, *inputs)

    def loop(self, state: Any, data: list[Any], rows: Any, start: int, count: int, totals: list[Any], generators: Any) -> None:
        """Many steps."""
        key = (rows is None, len(totals))
        if key not in self._loops:
            self._loops[key] = self._looped(has_rows=rows is not None, many=len(totals))
        given = [] if rows is None else [rows]
        self._loops[key](*state, *self._constants, *generators, *data, *given, *totals, start, count)

    def _looped(self, *, has_rows: bool, many: int) -> Any:
        batch = range(self._many[1])
        zero, yes, one = self._constant(0), self._constant(True), self._constant(1)
        lines = ["%i : int = aten::add(%n, %start)"]
        if has_rows:
            lines.append(f"%row : Tensor = aten::select(%rows, {zero}, %i)")
            lines += [f"%x{j} : Tensor = aten::index_select(%d{j}, {zero}, %row)" for j in batch]
        else:
            lines += [f"%x{j} : Tensor = aten::select(%d{j}, {zero}, %i)" for j in batch]
        lines += self._lines
        lines += [f"%t_{j} : Tensor = aten::add_(%t{j}, {self._results[j]}, {one})" for j in range(many)]
        body = [f"prim::Loop(%count, {yes})", "  block0(%n : int):", *(f"    {line}" for line in lines), f"    -> ({yes})"]
        heads = [f"%d{j} : Tensor" for j in batch] + (["%rows : Tensor"] if has_rows else [])
        heads += [*(f"%t{j} : Tensor" for j in range(many)), "%start : int", "%count : int"]
        return self._function(body, heads, "%count", batch=False)


def _unoptimized(function: Any) -> Callable[..., Any]:
    """Run as it is written: the interpreter's own optimizer takes what is written into a list of tensors for unused."""
    get, put = torch._C._get_graph_executor_optimize, torch._C._set_graph_executor_optimize

    def call(*args: Any) -> Any:
        before = get()
        put(False)
        try:
            return function(*args)
        finally:
            put(before)

    return call


def _nodes(block: Any) -> Any:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _forget(slots: list[int]) -> None:
    for slot in slots:
        del _functions[slot]
