"""`kustom check TARGET…`: loads what is asked for, runs the battery, and says what it found in one of several forms.

Keras runs on one backend in a process, so that several are processes of their own, each running this command with
`--backend NAME`; their reports are laid over one another.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kustom.backends import KNOWN, installed
from kustom.checking.settings import Settings, read_settings
from kustom.errors import UsageError

if TYPE_CHECKING:
    from kustom.checking.report import Report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="a file, a folder, a notebook, a module, or package.module:Name(arguments)",
    )
    parser.add_argument("--select", metavar="CODES", help="run these codes, or those that begin so: G,C103")
    parser.add_argument("--ignore", metavar="CODES", help="leave these codes out")
    parser.add_argument("--backend", metavar="NAME", help="tensorflow, jax, torch, or all of those that are installed")
    parser.add_argument(
        "--format", choices=["table", "json", "sarif", "github", "junit"], default="table", help="of the output; table by default"
    )
    parser.add_argument("--output", metavar="FILE", help="write the report there")
    parser.add_argument("--baseline", metavar="FILE", help="do not count the findings of old that it lists")
    parser.add_argument("--write-baseline", metavar="FILE", help="write the findings of now there, and count none")
    parser.add_argument("--seed", help='of the random numbers: a whole number, or "random"')
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for a cell of a notebook; 60 by default")
    parser.add_argument("--preview", action="store_true", help="run the codes that are new in this version, too")
    parser.add_argument("--details", action="store_true", help="show inputs, values, reasons and reproducers")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    # Of a process that looks at one of several backends: what runs on every backend runs in another.
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and return 1 where something was found.

    Raises:
        UsageError: A target, a code, a backend, a setting or a baseline is not what it must be, or a file cannot be written.
    """
    settings = _settings(arguments)
    for option in ("output", "write_baseline"):
        _refuse_place(option, getattr(arguments, option))
    bar = _Bar(sys.stderr, enabled=not arguments.no_progress and sys.stderr.isatty())
    if settings.backend == "all":
        report, notes = _on_every_backend(arguments, settings, bar)
    else:
        _choose(settings.backend)
        report, notes = _here(arguments, settings, bar)
    bar.clear()
    return _written(report, notes, arguments, settings)


def _settings(arguments: argparse.Namespace) -> Settings:
    """pyproject.toml's, with what stands on the command line in their place."""
    held = vars(read_settings())
    given: dict[str, Any] = {
        "select": _codes(arguments.select),
        "ignore": _codes(arguments.ignore),
        "backend": arguments.backend,
        "baseline": arguments.baseline,
        "timeout": arguments.timeout,
        "preview": arguments.preview or None,
        "seed": _seed(arguments.seed),
    }
    settings = Settings(**{**held, **{name: value for name, value in given.items() if value is not None}})
    if settings.backend not in ("", "all", *KNOWN):
        raise UsageError(f"there is no backend {settings.backend!r}; they are {', '.join(KNOWN)}, and all for those installed.")
    if settings.timeout <= 0:
        raise UsageError(f"a cell's time is a positive number of seconds, not {settings.timeout:g}.")
    return settings


def _refuse_place(option: str, path: str | None) -> None:
    """Refuse, before anything is checked, to write where nothing can be written."""
    if path is None:
        return
    folder = Path(path).parent
    if not os.path.isdir(folder):
        raise UsageError(f"--{option.replace('_', '-')} {path}: there is no folder {folder}.")
    if os.path.isdir(path):
        raise UsageError(f"--{option.replace('_', '-')} {path}: this is a folder; give the name of a file.")


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def _codes(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(code.strip() for code in text.split(",") if code.strip())


def _seed(text: str | None) -> int | str | None:
    if text is None or text == "random":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f'a seed is a whole number, or "random", not {text!r}.') from error


def _choose(backend: str) -> None:
    """Have Keras take a backend, where it has not taken one."""
    if not backend:
        return
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = backend
        return
    import keras

    if keras.backend.backend() != backend:
        raise UsageError(f"this process runs Keras on {keras.backend.backend()!r}; set KERAS_BACKEND={backend} before it starts.")


def _here(arguments: argparse.Namespace, settings: Settings, bar: _Bar) -> tuple[Report, list[str]]:
    """Check on the backend of this process."""
    from kustom.checking.notebook import check_notebook
    from kustom.checking.report import Report
    from kustom.checking.rules import load, selected
    from kustom.checking.runner import checks_of
    from kustom.checking.runner import run as run_checks
    from kustom.checking.targets import units

    ignored = [*settings.ignore, *(code for code, rule in load().items() if arguments.alone and rule.where == "every backend")]
    chosen: dict[str, Any] = {"only": list(settings.select) or None, "skip": ignored, "preview": settings.preview}
    rules = selected(**chosen)
    codes = {rule.code for rule in rules}
    reads_only = all(rule.where == "source" for rule in rules)
    # What the source says has been said of the whole file.
    of_parts = {**chosen, "skip": [*ignored, "U"]}
    started = time.perf_counter()
    report, notes, loaded = Report(), [], []
    with _quiet():
        for unit in units(arguments.targets, exclude=settings.exclude, seed=settings.seed, reads_only=reads_only):
            bar.show(0, 0, unit.name)
            loaded.append(unit)
        total = sum(len(checks_of(subject, **of_parts)) for unit in loaded for subject in unit.subjects)
        done = 0
        for unit in loaded:
            if unit.notebook:
                one, mended = check_notebook(
                    unit.notebook, **chosen, seed=settings.seed, timeout=settings.timeout, reads_only=reads_only, progress=bar.show
                )
                unit.outcomes, unit.mended = one.outcomes, mended
            report.outcomes += [outcome for outcome in unit.outcomes if outcome.code in codes]
            notes += [f"checked as if mended: {mend}" for mend in unit.mended]
            for subject in unit.subjects:

                def step(rule: Any, name: str = subject.name) -> None:
                    nonlocal done
                    bar.show(done, total, f"{name} {rule.code}")
                    done += 1

                one = run_checks(subject, **of_parts, progress=step)
                report.outcomes += one.outcomes
                report.seed = one.seed
    if not report.outcomes:
        notes.append(f"no part, and no fault of a name, was found in {', '.join(arguments.targets)}")
    report.seconds = time.perf_counter() - started
    return report, notes


@contextlib.contextmanager
def _quiet() -> Any:
    """What the checked modules print while they are imported is not the report."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _on_every_backend(arguments: argparse.Namespace, settings: Settings, bar: _Bar) -> tuple[Report, list[str]]:
    """Check in a process for each installed backend, side by side, and lay the reports over one another."""
    backends = installed()
    with tempfile.TemporaryDirectory() as folder:
        running = {
            name: subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "kustom",
                    "check",
                    *_words(arguments, settings, name, f"{folder}/{name}", name != backends[0]),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "KERAS_BACKEND": name},
            )
            for name in backends
        }
        reports = {}
        for count, (name, process) in enumerate(running.items()):
            bar.show(count, len(backends), f"on {', '.join(backends)}")
            errors = process.communicate()[1]
            if process.returncode not in (0, 1):
                for other in running.values():
                    other.kill()
                    other.wait()
                raise UsageError(f"on {name}: {errors.strip().rpartition(chr(10))[2].removeprefix('kustom: ')}")
            reports[name] = _read(Path(folder) / name)
    return _laid_over(reports), []


def _words(arguments: argparse.Namespace, settings: Settings, backend: str, output: str, alone: bool) -> list[str]:
    words = [*arguments.targets, "--backend", backend, "--format", "json", "--output", output, "--no-progress"]
    words += ["--seed", str(settings.seed), "--timeout", str(settings.timeout)]
    words += ["--select", ",".join(settings.select)] if settings.select else []
    words += ["--ignore", ",".join(settings.ignore)] if settings.ignore else []
    return [*words, *(["--preview"] if settings.preview else []), *(["--alone"] if alone else [])]


def _read(path: Path) -> Report:
    import json

    from kustom.checking.report import Report

    return Report.from_json(json.loads(path.read_text(encoding="utf-8")))


def _laid_over(reports: dict[str, Report]) -> Report:
    """One report of several backends'; what only some of them say names these."""
    import dataclasses

    from kustom.checking.report import Report

    said: dict[Any, dict[str, Any]] = {}
    for backend, report in reports.items():
        for outcome in report.outcomes:
            key = (type(outcome), outcome.code, outcome.part, getattr(outcome, "place", ""), getattr(outcome, "variant", ""))
            said.setdefault(key, {}).setdefault(backend, outcome)
    outcomes = []
    for (kind, code, *_), by_backend in said.items():
        outcome = next(iter(by_backend.values()))
        everywhere = len(by_backend) == len([r for r in reports.values() if any(o.code == code for o in r.outcomes)])
        if not everywhere and "variant" in {field.name for field in dataclasses.fields(kind)}:
            named = ", ".join(by_backend)
            outcome = dataclasses.replace(outcome, variant=f"{outcome.variant}, {named}" if outcome.variant else named)
        outcomes.append(outcome)
    return Report(outcomes, max(r.seed for r in reports.values()), max(r.seconds for r in reports.values()))


def _written(report: Report, notes: list[str], arguments: argparse.Namespace, settings: Settings) -> int:
    from kustom.checking import baseline, formats

    report, complaints = baseline.exempted(report)
    notes += complaints
    if arguments.write_baseline:
        with _writing(arguments.write_baseline):
            count = baseline.write_baseline(report, arguments.write_baseline)
        print(f"{count} finding{'' if count == 1 else 's'} written to {arguments.write_baseline}", file=sys.stderr)
        return 0
    if settings.baseline:
        report, gone = baseline.with_baseline(report, settings.baseline)
        notes += [f"in the baseline, and found no more: {finding}" for finding in gone]
    form = arguments.format
    text = formats.table(report, details=arguments.details, notes=notes) if form == "table" else formats.FORMATS[form](report)
    if arguments.output:
        with _writing(arguments.output):
            Path(arguments.output).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0 if report.ok else 1


class _Bar:
    """A line at the end of the terminal that says how far it is."""

    def __init__(self, stream: Any, *, enabled: bool) -> None:
        self.stream, self.enabled, self.width = stream, enabled, 0

    def show(self, done: int, total: int, name: str) -> None:
        """Write it anew."""
        if not self.enabled:
            return
        filled = round(20 * done / total) if total else 0
        text = f"[{'#' * filled}{'.' * (20 - filled)}] {f'{done}/{total} ' if total else ''}{name}"[:100]
        self.stream.write(f"\r{text:<{self.width}}")
        self.stream.flush()
        self.width = len(text)

    def clear(self) -> None:
        """Leave an empty line."""
        if self.width:
            self.stream.write(f"\r{' ' * self.width}\r")
            self.stream.flush()
