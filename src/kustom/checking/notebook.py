"""Runs the cells of a notebook in a process of their own, and checks every part that they define.

The cells run in order, in a folder of their own that shows what lies beside the notebook, so that data is found and nothing
is written there. A cell that raises is a finding, and the next ones still run. One that takes too long is stopped, and said
to be so; what then lacks the names that it would have made waits on it. What a cell needs from outside (a network, a file, a
library) is no fault of the notebook: it is "not checked".

This file is both ends: `check_notebook` starts the process, which runs this module, and reads the events that it writes.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import io
import json
import linecache
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kustom.checking import discovering
from kustom.checking.cells import Cell, Notebook, read_notebook
from kustom.checking.finding import NotChecked, NotRun, Outcome
from kustom.checking.report import Report
from kustom.checking.runner import checks_of, run
from kustom.checking.sources import read
from kustom.checking.subjects import Subject
from kustom.checking.targets import finding, source_outcomes
from kustom.errors import SubjectError

__all__ = ["check_notebook"]

# What a part's own checks may take on top of a cell's time before the process is given up.
_PATIENCE = 300.0
Progress = Callable[[int, int, str], None]


def check_notebook(
    path: str,
    *,
    only: Any = None,
    skip: Any = None,
    preview: bool = False,
    seed: int | str = 0,
    timeout: float = 60.0,
    reads_only: bool = False,
    progress: Progress | None = None,
) -> tuple[Report, list[str]]:
    """Run a notebook's cells and check the parts that they define, in a new process.

    Args:
        path: The notebook.
        only: Codes to run, or how they begin.
        skip: Codes to leave out.
        preview: Whether new codes run, too.
        seed: Of the checks.
        timeout: Seconds for a cell.
        reads_only: Whether the source is only read, and no cell is run.
        progress: Called with how many checks are done, how many there are, and the part's name.

    Returns:
        The report, and what was read otherwise than it is written, so that it could run.

    Raises:
        UsageError: It is no notebook.
    """
    read_notebook(path)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        events, errors = Path(folder) / "events", Path(folder) / "errors"
        events.touch()
        options = {"only": only, "skip": skip, "preview": preview, "seed": seed, "timeout": timeout, "reads_only": reads_only}
        command = [sys.executable, "-m", "kustom.checking.notebook", os.path.abspath(path), path, str(events), json.dumps(options)]
        with open(errors, "w") as stderr, _beside(path) as place:
            process = subprocess.Popen(
                command,
                cwd=place,
                env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": _python_path()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            outcomes, mended, doing = _follow(process, events, timeout + _PATIENCE, progress)
        if doing and process.returncode != 0:
            last = errors.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            how = "it was given up" if process.returncode is None or process.returncode < 0 else f"its process ended: {last[:200]}"
            outcomes.append(NotChecked("E801", Path(path).name, f"{how} in {doing}", unfinished=True))
    return Report(outcomes, 0 if seed == "random" else int(seed), time.perf_counter() - started), mended


def _python_path() -> str:
    """This process's paths, so that the other finds the same modules."""
    return os.pathsep.join(path for path in sys.path if path)


@contextlib.contextmanager
def _beside(path: str) -> Iterator[str]:
    """A folder that shows what lies beside a file, to which new files can be written."""
    with tempfile.TemporaryDirectory() as folder:
        for each in Path(path).resolve().parent.iterdir():
            try:
                (Path(folder) / each.name).symlink_to(each)
            except OSError:
                # No links here: the cells find what is given to them by an absolute path.
                break
        yield folder


def _follow(
    process: subprocess.Popen[Any], events: Path, patience: float, progress: Progress | None
) -> tuple[list[Outcome], list[str], str]:
    """Read a process's events until it ends, or is silent for too long: the outcomes, the mends, and what it did last."""
    outcomes: list[Outcome] = []
    mended: list[str] = []
    doing, heard = "its start", time.monotonic()
    with open(events, encoding="utf-8") as lines:
        unread = ""
        while True:
            ended = process.poll() is not None
            unread += lines.read()
            *whole, unread = unread.split("\n")
            for line in whole:
                heard = time.monotonic()
                event = json.loads(line)
                outcomes += Report.from_json(event["report"]).outcomes if "report" in event else []
                mended += event.get("mended", [])
                doing = event.get("doing", doing)
                if progress is not None and "total" in event:
                    progress(event["done"], event["total"], event["part"])
            if ended:
                return outcomes, mended, doing
            if time.monotonic() - heard > patience:
                process.kill()
                process.wait()
                return outcomes, mended, doing
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)


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
        if self.options["reads_only"]:
            self.say(doing="")
            return
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
        from kustom.checking.rules import selected

        codes = {rule.code for rule in selected(self.options["only"], self.options["skip"], preview=self.options["preview"])}
        return [outcome for outcome in outcomes if outcome.code in codes]

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
        if cell.is_python:
            nodes = [n for n in ast.walk(ast.parse(cell.text)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            for node in nodes:
                if node.id not in vars(self.module):
                    self.missing.setdefault(node.id, cell.number)

    def _made_by(self, cell: Cell) -> dict[str, Any]:
        """What the names that a cell defines stand for now; a later cell may give them another meaning."""
        if not cell.is_python:
            return {}
        names = set()
        for node in discovering.definitions(ast.parse(cell.text)):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)} if isinstance(node, ast.Assign) else {node.name}
        return {name: vars(self.module)[name] for name in names if name in vars(self.module)}

    def _check(self, snapshots: list[tuple[Cell, dict[str, Any]]], source: str) -> None:
        everything = ast.parse("".join(cell.text for cell, _ in snapshots if cell.is_python))
        subjects: list[Subject] = []
        for cell, namespace in snapshots:
            if not namespace:
                continue
            self.say(doing=f"the parts of cell {cell.number}")
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                found = list(discovering.found_in(namespace, ast.parse(cell.text), everything, "__main__"))
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
        if cell.is_python:
            statements += [(cell, node) for node in ast.parse(cell.text).body]
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
