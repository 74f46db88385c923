"""What is to be checked, from what stands on the command line: files, folders, modules, parts, notebooks.

A file is read first: its names and calls are checked with nothing of it run. It is imported only where it defines what may
be a part; and where its source has faults whose mend is certain, from the text with these mended, so that the checks that
run say what else is wrong.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kustom.checking import discovering
from kustom.checking.finding import Finding, NotChecked, Outcome
from kustom.checking.places import place_in
from kustom.checking.rules import by_code, selected
from kustom.checking.sources import Source, read
from kustom.checking.subjects import Subject, subjects_of
from kustom.errors import SubjectError, UsageError

__all__ = [
    "Unit",
    "chosen_outcomes",
    "files_in",
    "finding",
    "module_name",
    "source_outcomes",
    "unit_of_expression",
    "unit_of_file",
    "units",
]

_SKIPPED = ("tests", "test", "docs", "build", "dist", "node_modules", "site-packages", "__pycache__")


@dataclasses.dataclass
class Unit:
    """One file, module or expression that was asked for.

    Attributes:
        name: As it is shown.
        subjects: Its parts.
        outcomes: What was found without running a part: in the source, in importing it.
        mended: What was read otherwise than it is written, so that the parts could run.
        notebook: The path of a notebook, which has a process of its own.
    """

    name: str
    subjects: list[Subject] = dataclasses.field(default_factory=list)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    mended: list[str] = dataclasses.field(default_factory=list)
    notebook: str = ""


def units(targets: Iterable[str], *, exclude: Iterable[str] = (), seed: int | str = 0, reads_only: bool = False) -> Iterator[Unit]:
    """The units of the targets, each loaded when it is asked for.

    Args:
        targets: Paths of files, folders and notebooks, names of modules, and `package.module:expression`.
        exclude: Patterns of paths to leave out of folders, as in `Path.match`.
        seed: Of the subjects.
        reads_only: Whether files are only read, and nothing is imported.

    Raises:
        UsageError: A target is none of these.
    """
    given: dict[str, Any] = {"seed": seed, "reads_only": reads_only}
    # As `python -m` does, so that modules in the folder are found by their names.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for target in targets:
        path = Path(target)
        if target.endswith(".ipynb"):
            if not path.is_file():
                raise UsageError(f"there is no notebook {target}.")
            yield Unit(target, notebook=target)
        elif path.is_dir():
            yield from (
                Unit(str(each), notebook=str(each)) if each.suffix == ".ipynb" else unit_of_file(each, **given)
                for each in files_in(path, exclude)
            )
        elif path.is_file():
            if path.suffix != ".py":
                raise UsageError(f"{target} is neither a file of Python nor a notebook.")
            yield unit_of_file(path, **given)
        elif ":" in target and path.suffix != ".py":
            yield unit_of_expression(target, seed=seed)
        elif path.suffix == ".py" or os.sep in target:
            raise UsageError(f"there is no file or folder {target}.")
        else:
            yield from _units_of_module(target, exclude, given)


def files_in(folder: Path, exclude: Iterable[str] = ()) -> list[Path]:
    """The files of Python and notebooks in a folder, tests and hidden ones left out."""
    patterns = tuple(exclude)
    found = []
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.ipynb")]):
        inner = path.relative_to(folder)
        hidden = any(name.startswith(".") or name in _SKIPPED for name in inner.parts[:-1])
        is_test = path.name.startswith("test_") or path.name.endswith("_test.py") or path.name in ("conftest.py", "setup.py")
        if not hidden and not is_test and not any(path.match(pattern) for pattern in patterns):
            found.append(path)
    return found


def unit_of_file(path: Path, *, name: str | None = None, seed: int | str = 0, reads_only: bool = False) -> Unit:
    """A file of Python, read, and imported where it defines what may be a part."""
    unit = Unit(str(path))
    text = path.read_text(encoding="utf-8")
    try:
        source = read(text, str(path))
    except SyntaxError as error:
        unit.outcomes.append(finding("E802", path.name, f"{path}:{error.lineno or 1}", f"it is not Python: {error.msg}"))
        return unit
    unit.outcomes += source_outcomes(source)
    if not reads_only and discovering.might_define_parts(source.tree):
        unit.mended = _mended(source)
        _add_parts(unit, path, name or module_name(path), source, seed)
    return unit


def unit_of_expression(target: str, *, seed: int | str = 0) -> Unit:
    """`package.module:Name(arguments)`, or the name alone; also `file.py:Name`.

    Raises:
        UsageError: The module cannot be imported, or the expression has no value there.
    """
    where, _, expression = target.partition(":")
    unit = Unit(target)
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise UsageError(f"there is no file {where}.")
        module = _executed(Path(where), module_name(Path(where)), None)
    else:
        module = _imported(where)
    try:
        part = eval(compile(expression, target, "eval"), dict(vars(module)))
    except (NameError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f"{expression!r} has no value in {where}: {type(error).__name__}: {error}.") from error
    try:
        unit.subjects += subjects_of(part, seed=seed)
    except SubjectError as error:
        raise UsageError(str(error)) from error
    file = getattr(module, "__file__", None)
    written = part if isinstance(part, type | types.FunctionType) else type(part)
    if file and file.endswith(".py") and getattr(written, "__module__", "") == module.__name__:
        root = getattr(written, "__qualname__", "").partition(".")[0]
        outcomes = source_outcomes(read(Path(file).read_text(encoding="utf-8"), file))
        unit.outcomes += [o for o in outcomes if o.part.partition(".")[0] == root]
    return unit


def _units_of_module(name: str, exclude: Iterable[str], given: dict[str, Any]) -> Iterator[Unit]:
    # The spec of a submodule is found by importing the packages around it, and no more.
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise UsageError(f"{name!r} is neither a file, a folder nor a module that can be imported.")
    origin = Path(spec.origin)
    if not spec.submodule_search_locations:
        yield unit_of_file(origin, name=name, **given)
        return
    for path in files_in(origin.parent, exclude):
        inner = path.relative_to(origin.parent).with_suffix("")
        parts = [part for part in inner.parts if part != "__init__"]
        yield unit_of_file(path, name=".".join([name, *parts]), **given)


def module_name(path: Path) -> str:
    """The name under which a file is imported: with its packages, as far as they go up."""
    path = path.resolve()
    names = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names)


def _add_parts(unit: Unit, path: Path, name: str, source: Source, seed: int | str) -> None:
    mended = source.mended if unit.mended else None
    try:
        module = _executed(path, name, mended)
    except UsageError as error:
        unit.outcomes.append(finding("E802", path.name, f"{path}:1", str(error)))
        return
    except ModuleNotFoundError as error:
        unit.outcomes.append(NotChecked("E802", path.name, f"it needs {error.name}, which is not installed"))
        return
    except Exception as error:
        # A module may raise anything; that it does is the finding.
        unit.outcomes.append(finding("E802", path.name, f"{path}:{_line(error, path)}", f"{type(error).__name__}: {error}"))
        return
    tree = ast.parse(mended) if mended else source.tree
    for found in discovering.found_in(vars(module), tree, module=name):
        given: dict[str, Any] = {
            "kind": found.kind,
            "name": found.name,
            "place": f"{path}:{found.line}",
            "seed": seed,
            "source": mended,
        }
        if found.example is not None:
            unit.subjects.append(Subject(found.part, example=found.example, **given))
        else:
            unit.subjects += subjects_of(found.part, **given)


def _executed(path: Path, name: str, mended: str | None) -> types.ModuleType:
    """The module of a file: imported, or where it has been mended run from that text."""
    root = path.resolve().parents[name.count(".") + (path.stem == "__init__")]
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if mended is None:
        loaded = sys.modules.get(name)
        if loaded is not None and not _same_file(loaded, path):
            raise UsageError(f"another module is imported as {name!r}; give the file another name.")
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(compile(mended, str(path), "exec"), vars(module))
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _imported(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name!r} cannot be imported: {error}.") from error


def _same_file(module: types.ModuleType, path: Path) -> bool:
    return Path(getattr(module, "__file__", None) or "").resolve() == path.resolve()


def _line(error: BaseException, path: Path) -> int:
    """The last line of a file that a traceback goes through."""
    line, traceback = 1, error.__traceback__
    while traceback is not None:
        if Path(traceback.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def source_outcomes(source: Source, place: Any = None) -> list[Outcome]:
    """The problems of a source as findings; `place` says where a line stands, where that is not in the file itself."""
    at = place or (lambda line: f"{source.filename}:{line}")
    module = Path(source.filename).name
    found: list[Outcome] = []
    for p in source.problems:
        where = at(p.line)
        cell = place_in(where).cell
        around = p.part.partition(".")[0] or (module if cell is None else f"cell {cell}")
        more = {"mend": p.mend} if p.mend else {}
        found.append(finding(p.code, around, where, p.message, got=p.got, expected=p.expected, **more))
    return [*found, *(NotChecked(code, module, why) for code, why in source.undecided.items())]


def chosen_outcomes(outcomes: list[Outcome], only: Any, skip: Any, preview: bool) -> list[Outcome]:
    """Those whose codes are asked for."""
    codes = {rule.code for rule in selected(only, skip, preview=preview)}
    return [outcome for outcome in outcomes if outcome.code in codes]


def finding(code: str, part: str, place: str, message: str, **more: str) -> Finding:
    """A finding of a rule that is not asked of a part."""
    rule = by_code(code)
    details = {"why": rule.why, "mend": rule.mend, **more}
    return Finding(code=code, claim=rule.name, part=part, place=place, message=message, **details)


def _mended(source: Source) -> list[str]:
    return [f"{p.got} read as {p.expected} (line {p.line})" for p in source.problems if p.edits]
