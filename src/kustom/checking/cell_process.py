"""The process in which a notebook's cells run, and the parts that they define are checked.

It writes what it does and finds as events, a line of JSON each, so that nothing is lost where it does not come to its end.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import io
import json
import linecache
import signal
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kustom.checking import discovering
from kustom.checking.cells import Cell, Notebook, read_notebook
from kustom.checking.finding import NotChecked, NotRun, Outcome
from kustom.checking.report import Report
from kustom.checking.runner import checks_of, run
from kustom.checking.sources import read
from kustom.checking.subjects import Subject
from kustom.checking.targets import chosen_outcomes, finding, source_outcomes
from kustom.errors import SubjectError


class _TooLong(BaseException):
    """A cell has used up its time; no `except Exception` of its own takes it."""


@dataclasses.dataclass
class _Run:
    """The cells' process."""

    notebook: Notebook
    events: Any
    options: dict[str, Any]
    module: types.ModuleType = dataclasses.field(default_factory=lambda: types.ModuleType("__main__"))
    missing: dict[str, int] = dataclasses.field(default_factory=dict)
    failed: set[int] = dataclasses.field(default_factory=set)

    def say(self, **event: Any) -> None:
        """Hand an event to the process that waits."""
        self.events.write(json.dumps(event) + "\n")
        self.events.flush()

    def report(self, outcomes: list[Outcome]) -> None:
        self.say(report=Report(outcomes).to_json())

    def everything(self) -> None:
        """Read the source, run the cells, check the parts."""
        self.say(doing="its source")
        source = read(self.notebook.text, self.notebook.path)
        self.report(self._chosen(source_outcomes(source, self.notebook.place)))
        self.say(mended=[f"{p.got} read as {p.expected} ({self.notebook.place(p.line)})" for p in source.problems if p.edits])
        lines = source.mended.split("\n")
        cells = [dataclasses.replace(c, text=_slice(lines, c) if c.is_python else c.text) for c in self.notebook.cells]
        sys.modules["__main__"] = self.module
        setattr(builtins, "display", lambda *args, **kwargs: None)  # noqa: B010
        setattr(builtins, "get_ipython", _Shell)  # noqa: B010
        snapshots = []
        for cell in cells:
            self.say(doing=f"cell {cell.number}")
            self.report(self._chosen(self._run_cell(cell)))
            snapshots.append((cell, self._made_by(cell)))
        self._check(snapshots, _definitions_alone(cells, self.failed))
        self.say(doing="")

    def _chosen(self, outcomes: list[Outcome]) -> list[Outcome]:
        return chosen_outcomes(outcomes, self.options["only"], self.options["skip"], self.options["preview"])

    def _run_cell(self, cell: Cell) -> list[Outcome]:
        name = f"cell {cell.number}"
        filename = f"<{Path(self.notebook.path).name} {name}>"
        linecache.cache[filename] = (len(cell.text), None, cell.text.splitlines(keepends=True), filename)
        try:
            with _time_limit(self.options["timeout"]), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(cell.text, filename, "exec"), vars(self.module))
        except _TooLong:
            self._is_missing(cell)
            return [NotChecked("E801", name, f"it was stopped after {self.options['timeout']:g} s")]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A cell may raise anything, SystemExit too; that it does is the finding.
            self._is_missing(cell)
            return self._judged(cell, name, filename, error)
        return []

    def _judged(self, cell: Cell, name: str, filename: str, error: BaseException) -> list[Outcome]:
        if cell.raises:
            return []
        if isinstance(error, NameError) and error.name in self.missing:
            return [NotRun("E801", name, (f"cell {self.missing[error.name]}",))]
        outside = _from_outside(error)
        if outside:
            return [NotChecked("E801", name, outside)]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
        place = self.notebook.place(cell.first - 1 + min(line or (lines[-1] if lines else 1) or 1, cell.text.count("\n")))
        text = " ".join(str(error).split())
        return [finding("E801", name, place, f"the cell raises {type(error).__name__}: {text[:300]}")]

    def _is_missing(self, cell: Cell) -> None:
        """Note the names that a cell that did not end would have made."""
        self.failed.add(cell.number)
        for node in ast.walk(cell.tree or ast.Module([], [])):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in vars(self.module):
                self.missing.setdefault(node.id, cell.number)

    def _made_by(self, cell: Cell) -> dict[str, Any]:
        """What the names that a cell defines stand for now; a later cell may give them another meaning."""
        if cell.tree is None:
            return {}
        names = set()
        for node in discovering.definitions(cell.tree):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)} if isinstance(node, ast.Assign) else {node.name}
        return {name: vars(self.module)[name] for name in names if name in vars(self.module)}

    def _check(self, snapshots: list[tuple[Cell, dict[str, Any]]], source: str) -> None:
        everything = ast.parse("".join(cell.text for cell, _ in snapshots if cell.is_python))
        subjects: list[Subject] = []
        for cell, namespace in snapshots:
            if not namespace or cell.tree is None:
                continue
            self.say(doing=f"the parts of cell {cell.number}")
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                found = list(discovering.found_in(namespace, cell.tree, everything, "__main__"))
            for each in found:
                place = self.notebook.place(cell.first + each.line - 1)
                try:
                    subjects.append(
                        Subject(
                            each.part,
                            kind=each.kind,
                            name=each.name,
                            place=place,
                            example=each.example,
                            seed=self.options["seed"],
                            source=source,
                        )
                    )
                except SubjectError as error:
                    self.report([NotChecked("E801", each.name, str(error))])
        chosen = {"only": self.options["only"], "skip": _without_source(self.options["skip"]), "preview": self.options["preview"]}
        total = sum(len(checks_of(subject, **chosen)) for subject in subjects)
        done = 0
        for subject in subjects:

            def step(rule: Any, subject: Subject = subject) -> None:
                nonlocal done
                self.say(done=done, total=total, part=subject.name, doing=f"{rule.code} of {subject.name}")
                done += 1

            with contextlib.redirect_stdout(io.StringIO()):
                self.report(run(subject, **chosen, progress=step).outcomes)


def _without_source(skip: Any) -> list[str]:
    """Codes to leave out, with those of the source, which has been read as a whole."""
    return [*(skip.split(",") if isinstance(skip, str) else skip or ()), "U"]


def _slice(lines: list[str], cell: Cell) -> str:
    count = cell.text.count("\n")
    return "\n".join(lines[cell.first - 1 : cell.first - 1 + count]) + "\n"


def _from_outside(error: BaseException) -> str:
    """What a cell lacks that is no fault of its own; empty where it is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ModuleNotFoundError):
            return f"it needs {seen.name}, which is not installed"
        if isinstance(seen, ConnectionError) or any(word in type(seen).__name__ for word in ("URLError", "HTTPError", "gaierror")):
            return f"it needs the network: {seen}"
        if isinstance(seen, FileNotFoundError):
            return f"it needs a file that is not there: {seen.filename or seen}"
        seen = seen.__cause__ or seen.__context__
    return "it needs the network" if "URL fetch failure" in str(error) else ""


def _definitions_alone(cells: list[Cell], failed: set[int]) -> str:
    """What another process runs to have the parts: imports, definitions, and the assignments that these need."""
    statements: list[tuple[Cell, ast.stmt]] = []
    for cell in cells:
        if cell.tree is not None:
            statements += [(cell, node) for node in cell.tree.body]
    kept = [(c, n) for c, n in statements if isinstance(n, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)]
    assigned = [(c, n) for c, n in statements if isinstance(n, ast.Assign | ast.AnnAssign) and c.number not in failed]
    growing = True
    while growing:
        needed = {name for _, node in kept for name in _loaded(node)}
        more = [(c, n) for c, n in assigned if (c, n) not in kept and needed & _stored(n)]
        kept, growing = kept + more, bool(more)
    kept_nodes = {id(node) for _, node in kept}
    return "".join(ast.unparse(node) + "\n" for _, node in statements if id(node) in kept_nodes)


def _loaded(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}


def _stored(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` in here after some seconds, where the system has alarms; elsewhere the other process waits and kills."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again, since the first may be swallowed in a callback.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class _Shell:
    """What `get_ipython()` is asked for in converted notebooks: magics and the shell, which are left out."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def main(arguments: list[str]) -> None:
    """The cells' process: the notebook's path, how it is to be called, the file of events, the options."""
    path, shown, events, options = arguments
    notebook = dataclasses.replace(read_notebook(path), path=shown)
    with open(events, "a", encoding="utf-8") as file:
        _Run(notebook, file, json.loads(options)).everything()


if __name__ == "__main__":
    main(sys.argv[1:])
