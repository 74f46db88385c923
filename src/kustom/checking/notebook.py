"""Runs the cells of a notebook in a process of their own, and checks every part that they define.

The cells run in order, in a folder of their own that shows what lies beside the notebook, so that data is found and nothing
is written there. A cell that raises is a finding, and the next ones still run. One that takes too long is stopped, and said
to be so; what then lacks the names that it would have made waits on it. What a cell needs from outside (a network, a file, a
library) is no fault of the notebook: it is "not checked".

`check_notebook` starts the process, which runs `kustom.checking.cell_process`, and reads the events that it writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kustom.checking.cells import read_notebook
from kustom.checking.finding import NotChecked, Outcome
from kustom.checking.processes import python_path
from kustom.checking.report import Report
from kustom.checking.sources import read
from kustom.checking.targets import chosen_outcomes, source_outcomes

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
    started = time.perf_counter()
    notebook = read_notebook(path)
    if reads_only:
        outcomes = chosen_outcomes(source_outcomes(read(notebook.text, path), notebook.place), only, skip, preview)
        return Report(outcomes, 0, time.perf_counter() - started), []
    with tempfile.TemporaryDirectory() as folder:
        events, errors = Path(folder) / "events", Path(folder) / "errors"
        events.touch()
        options = {"only": only, "skip": skip, "preview": preview, "seed": seed, "timeout": timeout}
        words = [os.path.abspath(path), path, str(events), json.dumps(options)]
        with open(errors, "w") as stderr, _beside(path) as place:
            process = subprocess.Popen(
                [sys.executable, "-m", "kustom.checking.cell_process", *words],
                cwd=place,
                env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": python_path()},
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
