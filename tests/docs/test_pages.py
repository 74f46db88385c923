"""The code of the README and of every page in docs/ runs, and prints what the page says it prints.

A page is one test: its blocks run from top to bottom in one namespace, in an empty folder. A block of `>>>` lines is
compared with the output below each; numbers, to the digits that are shown. A block that begins with the name of a file
(`# parts.py`) is written to that file, and can be imported. In a `console` block the lines `$ python FILE` run in a new
process, and what it prints is compared, too.
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
from sybil.evaluators.doctest import DocTestEvaluator
from sybil.example import NotEvaluated
from sybil.parsers.abstract.doctest import DocTestStringParser
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DECIMAL = re.compile(r"-?\b\d+\.\d+(?:e[+-]?\d+)?\b")


class RoundingChecker(doctest.OutputChecker):
    """Compares decimal numbers as the page rounds them, since backends differ in the last digits of a float32."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        # What was written over is not seen.
        got = re.sub(r"[^\n]*\r", "", got)
        shown, found = DECIMAL.findall(want), DECIMAL.findall(got)
        if len(shown) == len(found):
            rounded = iter([w if _rounds_to(g, w) else g for w, g in zip(shown, found, strict=True)])
            got = DECIMAL.sub(lambda match: next(rounded), got)
        return super().check_output(want, got, optionflags)


def _rounds_to(number: str, shown: str) -> bool:
    digits = len(shown.partition(".")[2])
    return "e" not in shown and abs(float(number) - float(shown)) <= 0.5 * 10**-digits * (1 + 1e-6)


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
        if not RoundingChecker().check_output(expected, printed, FLAGS):
            return f"$ {command}\nshould print:\n{expected}\nbut printed:\n{printed}{run.stderr}"
    return None


def python_parser() -> PythonCodeBlockParser:
    evaluator, parser = DocTestEvaluator(), PythonCodeBlockParser()
    evaluator.runner = doctest.DocTestRunner(RoundingChecker(), verbose=False, optionflags=FLAGS)  # type: ignore[assignment]
    parser.doctest_parser = DocTestStringParser(evaluator)
    return parser


SYBIL = Sybil([python_parser(), CodeBlockParser("console", run_console)])


@pytest.mark.parametrize(
    ("shown", "printed", "equal"),
    [
        ("0.8", "0.800000011920929", True),
        ("0.8", "0.84", True),
        ("0.8", "0.86", False),
        ("[0.0000, 7.07]", "[4.5e-05, 7.0738]", True),
        ("2.0", "2", False),
        ("huber(threshold=2.0)", "huber(threshold=3.0)", False),
        ("2/2 - loss: 0.50\nend", "\r1/2 - loss: 0.7\r2/2 - loss: 0.5   \nend", True),
        ("1/2 - loss: 0.70\nend", "\r1/2 - loss: 0.7\r2/2 - loss: 0.5   \nend", False),
    ],
)
def test_numbers_are_compared_to_the_digits_shown(shown: str, printed: str, equal: bool) -> None:
    assert RoundingChecker().check_output(f"{shown}\n", f"{printed}\n", FLAGS) is equal


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
