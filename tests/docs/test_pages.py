"""The code of the README and of every page in docs/ runs, and prints what the page says it prints.

A page is one test: its blocks run from top to bottom in one namespace, in an empty folder. A block of `>>>` lines is
compared with the output below each; numbers, to the digits that are shown. A block that begins with the name of a file
(`# parts.py`) is written to that file, and can be imported. In a `console` block the lines `$ python FILE` run in a new process, and what it
prints is compared, too.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import keras
import pytest
from sybil import Example, Sybil
from sybil.evaluators.doctest import NUMBER, OutputChecker
from sybil.example import NotEvaluated
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = NUMBER | doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def write_file(example: Example) -> None:
    named = re.match(r"# (\w+\.py)\n", example.parsed) if isinstance(example.parsed, str) else None
    if named is None:
        raise NotEvaluated
    Path(named[1]).write_text(example.parsed)


def run_console(example: Example) -> str | None:
    """Run each command of a console block; return how its output differs from what the page shows."""
    for shown in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
        command, _, expected = shown.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "python", f"a console block runs python and nothing else, not {command!r}; write sh for what is not run"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TF_CPP_MIN_LOG_LEVEL": "3"}
        run = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        # Of an error the page shows the last line; the backends write their own notices there, too.
        printed = run.stdout + (run.stderr.splitlines()[-1] + "\n" if run.returncode else "")
        if not OutputChecker().check_output(expected, printed, FLAGS):
            return f"$ {command}\nshould print:\n{expected}\nbut printed:\n{printed}{run.stderr}"
    return None


SYBIL = Sybil([PythonCodeBlockParser(doctest_optionflags=FLAGS), CodeBlockParser("console", run_console)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_does_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Parts are registered under their module, so that each page is a module of its own.
    module = types.ModuleType(re.sub(r"\W", "_", f"page_{page.relative_to(ROOT).with_suffix('')}"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    document = SYBIL.parse(page)
    document.namespace = vars(module)
    document.push_evaluator(write_file)
    for example in document.examples():
        example.evaluate()
