"""Notebooks: cells run in order, what fails does not stop the rest, and every part that a cell defines is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kustom import errors
from kustom.checking.cells import read_notebook
from kustom.checking.finding import Finding, NotChecked, NotRun
from kustom.checking.notebook import check_notebook

CELLS = [
    "import keras\nimport numpy as np\nfrom keras import ops",
    # 2: a name that is nearly right, before a jump at the threshold.
    """
def make_pinched(limit=1.0):
    def pinched(y_true, y_pred):
        error = ops.abs(y_true - y_pred)
        quadratic_loss = ops.square(error) / 2
        straight_loss = limit * error - limit * 2 * 0.5
        return ops.where(error < limit, quadratc_loss, straight_loss)
    return pinched
""",
    # 3: overflows; an attribute that there is not.
    """
def plain_softplus(z):
    return ops.log(ops.exp(z) + 1.0)

def only_positive(weights):
    return ops.where(weights < 0.0, ops.zeors_like(weights), weights)
""",
    "%matplotlib inline\n!ls\nmean = keras.metrics.Mean()\nmean.update_state([1.0, 2.0])",
    "mean.reset_states()",
    # 6: the name of a weight by position.
    """
class Total(keras.metrics.Metric):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.total = self.add_weight("total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(ops.sum(y_pred))

    def result(self):
        return self.total + 0.0
""",
    # 7: a shape that is a tuple; a count that nothing says.
    """
@keras.saving.register_keras_serializable()
class Widening(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], self.units))

    def call(self, x):
        return ops.matmul(x, self.kernel)

    def compute_output_shape(self, batch_input_shape):
        return tuple(batch_input_shape.as_list()[:-1] + [self.units])
""",
    # 8: a parameter that is never set.
    """
class Shaken(keras.layers.Layer):
    def call(self, x, trianing=None):
        if training:
            return x + keras.random.normal(ops.shape(x))
        return x
""",
    "squared = keras.layers.Lambda(lambda x: x**2)",
    "raise ValueError('of no use')",
    "table = np.load('not_there.npy')",
    "print(table.shape)",
    "import a_library_that_is_not_installed",
    "while True:\n    pass",
    "after = 1",
    "1 / 0",
    "2 +* 3",
    "%%bash\nrm -rf everything",
    "open('written.txt', 'w').close()\nprint(open('beside.txt').read())",
]
TAGS = {16: ["raises-exception"]}


def write(path: Path, cells: list[str], tags: dict[int, list[str]] | None = None) -> Path:
    code = [
        {
            "cell_type": "code",
            "source": text.strip("\n").splitlines(keepends=True),
            "metadata": {"tags": (tags or {}).get(number, [])},
        }
        for number, text in enumerate(cells, 1)
    ]
    text = {"cell_type": "markdown", "source": ["# A title"], "metadata": {}}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [text, *code]}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "beside.txt").write_text("read")
    return write(folder / "parts.ipynb", CELLS, TAGS)


@pytest.fixture(scope="module")
def checked(notebook):
    steps: list[tuple[int, int, str]] = []
    report, mended = check_notebook(str(notebook), only="U,E,N3", timeout=2.0, progress=lambda *step: steps.append(step))
    return report, mended, steps


def findings(report, code):
    return {(f.place.rpartition("/")[2], f.part) for f in report.findings if f.code.startswith(code)}


def test_what_the_source_says_is_said_with_the_cell_and_its_line(checked):
    report, _, _ = checked
    assert findings(report, "U") == {
        ("parts.ipynb:cell 2:6", "make_pinched"),
        ("parts.ipynb:cell 3:5", "only_positive"),
        ("parts.ipynb:cell 5:1", "cell 5"),
        ("parts.ipynb:cell 6:4", "Total"),
        ("parts.ipynb:cell 7:14", "Widening"),
        ("parts.ipynb:cell 8:2", "Shaken"),
        ("parts.ipynb:cell 8:3", "Shaken"),
    }


def test_a_cell_that_fails_is_a_finding_and_the_next_still_run(checked):
    report, _, _ = checked
    assert findings(report, "E801") == {("parts.ipynb:cell 10:1", "cell 10"), ("parts.ipynb:cell 17:1", "cell 17")}
    message = next(f.message for f in report.findings if f.part == "cell 10")
    assert message == "the cell raises ValueError: of no use"


def test_what_a_cell_lacks_from_outside_is_not_its_fault(checked):
    report, _, _ = checked
    why = {o.part: o.why for o in report.outcomes if isinstance(o, NotChecked) and o.code == "E801"}
    assert set(why) == {"cell 11", "cell 13", "cell 14"}
    assert "a file that is not there: not_there.npy" in why["cell 11"]
    assert why["cell 13"] == "it needs a_library_that_is_not_installed, which is not installed"
    assert why["cell 14"] == "it was stopped after 2 s"


def test_what_lacks_the_names_of_a_cell_that_did_not_end_waits_on_it(checked):
    report, _, _ = checked
    assert [(o.part, o.waits_on) for o in report.outcomes if isinstance(o, NotRun) and o.code == "E801"] == [
        ("cell 12", ("cell 11",))
    ]


def test_parts_are_checked_as_if_mended_and_it_is_said(checked):
    report, mended, steps = checked
    assert any(line.startswith("quadratc_loss read as quadratic_loss (") for line in mended)
    assert len(mended) == 6
    assert {part for _, _, part in steps} >= {"plain_softplus"}
    assert ("parts.ipynb:cell 3:1", "plain_softplus") in findings(report, "N301")


def test_nothing_is_written_beside_the_notebook(checked, notebook):
    assert checked
    assert sorted(path.name for path in notebook.parent.iterdir()) == ["beside.txt", "parts.ipynb"]


def test_a_notebook_is_only_read_where_nothing_else_is_asked_for(tmp_path):
    path = write(tmp_path / "endless.ipynb", ["from keras import ops\nops.zeors(3)", "while True:\n    pass"])
    report, mended = check_notebook(str(path), only="U", reads_only=True)
    assert [(f.code, f.place) for f in report.findings] == [("U003", f"{path}:cell 1:2")]
    assert mended == []
    assert all(isinstance(outcome, Finding) for outcome in report)


def test_magics_and_the_shell_are_emptied_and_lines_stay(tmp_path):
    path = write(
        tmp_path / "magics.ipynb",
        [
            "%time x = 1\nif True:\n    !pip install this \\\n        and that\nfiles = !ls\nhelp?\ny = 5 % 3",
            "%%time\nz = 1",
            "%%html\n<b>",
        ],
    )
    cells = read_notebook(path).cells
    assert cells[0].text == "\nif True:\n    pass\n        pass\n\n\ny = 5 % 3\n" or cells[0].is_python
    assert [cell.first for cell in cells] == [1, 8, 10]
    assert cells[1].text == "\nz = 1\n"
    assert cells[2].text == "\n\n"


@pytest.mark.parametrize("content", ["no json", "{}", '{"cells": 3}', "[]"])
def test_what_is_no_notebook_is_refused(tmp_path, content):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    with pytest.raises(errors.UsageError, match="is no notebook"):
        read_notebook(path)


def test_the_older_format_is_read(tmp_path):
    path = tmp_path / "old.ipynb"
    path.write_text(json.dumps({"worksheets": [{"cells": [{"cell_type": "code", "input": ["x = 1\n", "x"]}]}]}))
    assert [cell.text for cell in read_notebook(path).cells] == ["x = 1\nx\n"]
