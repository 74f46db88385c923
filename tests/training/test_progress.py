"""The status line, in a terminal, a notebook and a file."""

from __future__ import annotations

import io
import sys
import types

import numpy as np
import pytest

from kustom.training import progress
from kustom.training.progress import StatusLine


class Terminal(io.StringIO):
    """A terminal that shows what stands in its lines after all that was written."""

    def isatty(self):
        return True

    @property
    def lines(self):
        shown = []
        for line in self.getvalue().split("\n"):
            cells = []
            at = 0
            for char in line:
                if char == "\r":
                    at = 0
                    continue
                cells[at : at + 1] = [char]
                at += 1
            shown.append("".join(cells).rstrip())
        return shown


@pytest.fixture
def clock(monkeypatch):
    """The time, which goes on when told."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now.seconds)
    return now


def run(line, clock, epochs=2):
    for epoch in range(1, epochs + 1):
        line.epoch(epoch)
        for done in (100, 200, 362):
            clock.seconds += 1
            line.update(done, {"loss": 0.56312, "mae": 0.41019})
        line.end_epoch({"loss": 0.5631, "mae": 0.41, "val_loss": 0.5})
    line.close()


def test_a_terminal_shows_one_line_an_epoch_that_was_rewritten(clock):
    out = Terminal()
    run(StatusLine(2, 362, out=out), clock)
    assert out.lines == [
        "Epoch 1/2  362/362  loss 0.5631  mae 0.4100  val_loss 0.5000  130 steps/s  0:00:03",
        "Epoch 2/2  362/362  loss 0.5631  mae 0.4100  val_loss 0.5000  120 steps/s  0:00:03",
        "",
    ]
    assert "Epoch 2/2  200/362  loss 0.5631  mae 0.4102  100 steps/s  0:00:02" in out.getvalue()


def test_the_line_of_the_issue(clock):
    out = Terminal()
    line = StatusLine(5, 362, out=out)
    line.epoch(1)
    line.update(1, {})
    line.epoch(2)
    clock.seconds += 214 / 41_000
    line.update(214, {"loss": 0.5631, "mae": 0.4102})
    line._begun -= 3
    line._write(force=True)
    assert out.lines[-1] == "Epoch 2/5  214/362  loss 0.5631  mae 0.4102  41,000 steps/s  0:00:03"


def test_the_rate_does_not_count_what_was_compiled(clock):
    out = Terminal()
    line = StatusLine(1, 300, out=out)
    line.epoch(1)
    clock.seconds += 60
    line.update(100, {})
    assert "steps/s" not in out.lines[-1]
    clock.seconds += 1
    line.update(300, {})
    assert "200 steps/s  0:01:01" in out.lines[-1]


def test_a_file_gets_one_line_an_epoch(clock):
    out = io.StringIO()
    run(StatusLine(2, None, out=out), clock)
    assert out.getvalue().splitlines() == [
        "Epoch 1/2  362/?  loss 0.5631  mae 0.4100  val_loss 0.5000  130 steps/s  0:00:03",
        "Epoch 2/2  362/?  loss 0.5631  mae 0.4100  val_loss 0.5000  120 steps/s  0:00:03",
    ]


@pytest.mark.parametrize("verbose", [1, 2, True])
def test_a_file_is_not_rewritten_when_asked_to_be(clock, verbose):
    out = io.StringIO()
    line = StatusLine(2, 362, verbose, out=out)
    line.epoch(1)
    line.update(362, {"loss": 1.0})
    line.end_epoch({"loss": 1.0})
    line.close()
    assert out.getvalue() == "Epoch 1/2  362/362  loss 1.0  0:00:00\n"


def test_a_terminal_is_not_rewritten_when_told_so(clock):
    out = Terminal()
    run(StatusLine(1, 362, 2, out=out), clock, epochs=1)
    assert "\r" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 1


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_nothing_is_written_when_told_so(clock, out):
    line = StatusLine(2, 362, 0, out=out)
    run(line, clock)
    line.say("a message")
    assert out.getvalue() == ""


def test_a_message_stands_above_the_line(clock):
    out = Terminal()
    line = StatusLine(1, 10, out=out)
    line.epoch(1)
    clock.seconds += 1
    line.update(5, {"loss": 1.5})
    line.say("saved")
    assert out.lines == ["saved", "Epoch 1/1  5/10  loss 1.5000  0:00:01"]
    log = io.StringIO()
    StatusLine(1, 10, out=log).say("saved")
    assert log.getvalue() == "saved\n"


def test_the_line_is_as_wide_as_the_terminal(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "62")
    out = Terminal()
    line = StatusLine(1, 362, out=out)
    line.epoch(1)
    for done in (100, 362):
        clock.seconds += 1
        line.update(done, {"loss": 0.5, "mae": 0.25, "another": 1.0})
    assert out.lines == ["Epoch 1/1  362/362  loss 0.5000  …  260 steps/s  0:00:02"]
    line.end_epoch({"val_loss": 1.0})
    assert out.lines[0] == "Epoch 1/1  362/362  loss 0.5000  mae 0.2500  another 1.0  val_loss 1.0  260 steps/s  0:00:02"


def test_a_shorter_line_leaves_nothing_of_a_longer_one(clock):
    out = Terminal()
    line = StatusLine(1, 10, out=out)
    line.epoch(1)
    clock.seconds += 1
    line.update(1, {"loss": 12345.678, "another": 1.25})
    clock.seconds += 1
    line.update(2, {"loss": 1.0})
    assert out.lines == ["Epoch 1/1  2/10  loss 1.0  1.0 steps/s  0:00:02"]


def test_a_terminal_is_not_written_to_at_every_step(clock):
    out = Terminal()
    line = StatusLine(1, 1000, out=out)
    line.epoch(1)
    for done in range(1000):
        clock.seconds += 0.001
        line.update(done + 1, {"loss": 1.0})
    assert out.getvalue().count("\r") < 15


def test_an_interrupted_line_is_left_as_it_is(clock):
    out = Terminal()
    line = StatusLine(1, 10, out=out)
    line.epoch(1)
    clock.seconds += 1
    line.update(1, {"loss": 1.5})
    line.close()
    line.close()
    assert out.lines == ["Epoch 1/1  1/10  loss 1.5000  0:00:01", ""]


def test_a_notebook_updates_an_output_of_its_own(clock, monkeypatch, capsys):
    outputs = []

    class Handle:
        def __init__(self, text):
            outputs.append(text)

        def update(self, data, raw):
            outputs[-1] = data["text/plain"]

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    show = types.SimpleNamespace(display=lambda data, raw, display_id: Handle(data["text/plain"]))
    monkeypatch.setitem(sys.modules, "IPython.display", show)
    run(StatusLine(2, 362), clock)
    assert outputs == [
        "Epoch 1/2  362/362  loss 0.5631  mae 0.4100  val_loss 0.5000  130 steps/s  0:00:03",
        "Epoch 2/2  362/362  loss 0.5631  mae 0.4100  val_loss 0.5000  120 steps/s  0:00:03",
    ]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5000"),
        (np.float32(3), "3.0"),
        (123456.7, "1.235e+05"),
        (12345.67, "12,345.7"),
        (1e-7, "1.000e-07"),
        (float("nan"), "nan"),
        (-float("inf"), "-inf"),
        (0, "0.0"),
        (np.array([0.25, 1, 2, 3, 4]), "[0.2500 1.0 2.0 3.0 …]"),
    ],
)
def test_numbers_have_four_digits(clock, value, text):
    out = io.StringIO()
    line = StatusLine(1, 1, out=out)
    line.epoch(1)
    line.end_epoch({"value": value})
    assert f"  value {text}  " in out.getvalue()


@pytest.mark.parametrize(("rate", "text"), [(0.25, "4.0 s/step"), (12.34, "12.3 steps/s"), (87_654, "88,000 steps/s")])
def test_rates(clock, rate, text):
    out = io.StringIO()
    line = StatusLine(1, None, out=out)
    line.epoch(1)
    line.update(0, {})
    clock.seconds += 1000
    line.update(int(1000 * rate), {})
    line.end_epoch({})
    assert f"  {text}  0:16:40" in out.getvalue()
