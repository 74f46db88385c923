"""What is shown: a table a workload, the targets beside what was seen, and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from contenders.rounds import Seen
from contenders.workloads import WORKLOADS

KUSTOM = ("kustom.Loop", "kustom.Loop of Supervised")
COMPILED = ("by hand, torch.compile", "kustom.Loop, inductor")
# Of the same work, by another compiler.
TOLERANCE = 0.02


def table(rows: Iterable[list[str]]) -> str:
    """A table in Markdown, in columns for those who read it in a terminal; the first row is its head."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [i == 0 or not any(character.isdigit() for row in rows[1:] for character in row[i][:1]) for i in range(len(widths))]
    lines = [
        "| " + " | ".join(c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True)) + " |"
        for row in rows
    ]
    rule = "| " + " | ".join("-" * w if to_left else "-" * (w - 1) + ":" for w, to_left in zip(widths, left, strict=True)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def number(value: float | None, digits: int) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


class Results:
    """Everything seen, and what follows from it."""

    def __init__(self, seen: list[Seen]) -> None:
        self.seen = seen
        self.by_name = {(one.workload, one.backend, one.contender): one for one in seen if one.microseconds}

    def letters(self) -> list[str]:
        return [letter for letter in WORKLOADS if any(one.workload == letter for one in self.seen)]

    def time(self, letter: str, backend: str, name: str) -> float | None:
        one = self.by_name.get((letter, backend, name))
        return one.microseconds if one else None

    def best_by_hand(self, letter: str, backend: str) -> float | None:
        """The fastest loop by hand that needs no compiler of a minute."""
        times = [
            time
            for (workload, where, name), one in self.by_name.items()
            if (workload, where) == (letter, backend) and name.startswith("by hand") and name not in COMPILED
            if (time := one.microseconds)
        ]
        return min(times, default=None)

    def table(self, letter: str) -> str:
        """One workload's contenders; ratios are to `fit` and to the best loop by hand on the same backend."""
        head = [
            "backend",
            "contender",
            "µs a step",
            "× fit",
            "× by hand",
            "before the first step, s",
            "loss",
            WORKLOADS[letter].metric,
        ]
        memory = any(one.peak_megabytes for one in self.seen)
        rows = [[*head, "peak, MB"] if memory else head]
        for one in self.seen:
            if one.workload != letter or one.microseconds is None:
                continue
            fit, hand = self.time(letter, one.backend, "fit"), self.best_by_hand(letter, one.backend)
            row = [one.backend, one.contender, number(one.microseconds, 1 if one.microseconds < 100 else 0)]
            row += [number(other and one.microseconds / other, 2) for other in (fit, hand)]
            row += [number(one.first_seconds, 2), number(one.loss, 4), number(one.metric, 4)]
            rows.append([*row, number(one.peak_megabytes, 0)] if memory else row)
        return table(rows)

    def wrong(self) -> list[str]:
        """What is missing, and who did other work than the rest."""
        found = [f"{one.workload}, {one.backend}: {one.contender} is missing: {one.missing}" for one in self.seen if one.missing]
        for letter in self.letters():
            losses = [(one, one.loss) for one in self.seen if one.workload == letter and one.loss is not None]
            numbers = [loss for _, loss in losses if math.isfinite(loss)]
            middle = statistics.median(numbers) if numbers else 0.0
            for one, loss in losses:
                if not abs(loss - middle) <= TOLERANCE * middle:
                    found.append(
                        f"{letter}, {one.backend}: {one.contender} did other work, its loss is {loss:.4f}, not {middle:.4f}"
                    )
        return found

    def targets(self) -> list[list[str]]:
        """What was asked of kustom: workload, backend, claim, what was seen, whether it holds."""
        rows = []

        def claim(
            letter: str, backend: str, text: str, seen: float, limit: float, *, least: bool = False, unit: str = " ×"
        ) -> None:
            holds = seen >= limit if least else seen <= limit
            words = f"at {'least' if least else 'most'} {limit:g}{unit}"
            rows.append([letter, backend, text, f"{seen:.2f}{unit}", words, "holds" if holds else "misses"])

        for letter in self.letters():
            for backend in ("tensorflow", "jax", "torch"):
                for name in KUSTOM:
                    one = self.by_name.get((letter, backend, name))
                    if one is None or one.microseconds is None:
                        continue
                    for text, other, limit, least in self.asked(letter, backend):
                        if other is not None:
                            ratio = other / one.microseconds if least else one.microseconds / other
                            claim(letter, backend, f"{name}, {text}", ratio, limit, least=least)
                    fit = self.by_name.get((letter, backend, "fit"))
                    if fit is not None and fit.first_seconds is not None and one.first_seconds is not None:
                        late = one.first_seconds - fit.first_seconds
                        claim(letter, backend, f"{name}, before its first step, over fit's", late, 1, unit=" s")
                    if fit is not None and fit.peak_megabytes is not None and one.peak_megabytes is not None:
                        X, y = WORKLOADS[letter].rows(WORKLOADS[letter].steps)
                        data = (X.nbytes + y.nbytes) / 1e6
                        claim(
                            letter, backend, f"{name}, peak over fit's", one.peak_megabytes - fit.peak_megabytes, data, unit=" MB"
                        )
            compiled, hand = self.time(letter, "torch", COMPILED[1]), self.time(letter, "torch", "by hand")
            if letter == "a" and compiled and hand:
                claim(letter, "torch", f"{COMPILED[1]}, to by hand", compiled / hand, 0.35)
        return rows

    def asked(self, letter: str, backend: str) -> list[tuple[str, float | None, float, bool]]:
        """A text, the time to compare with, the limit, and whether it is a least one."""
        fit = self.time(letter, backend, "fit")
        if letter != "a":
            return [("to fit", fit, 1.0, False), ("to the best by hand", self.best_by_hand(letter, backend), 1.05, False)]
        if backend == "jax":
            scan = self.time(letter, backend, "by hand, optax, a scan an epoch")
            return [("to the scan by hand", scan, 1.05, False), ("faster than fit", fit, 6.0, True)]
        if backend == "tensorflow":
            xla = self.time(letter, backend, "by hand, loop in a graph, XLA")
            step = self.time(letter, backend, "by hand, tf.function a step")
            return [("to the XLA loop by hand", xla, 1.3, False), ("faster than a tf.function a step", step, 25.0, True)]
        return [("to by hand", self.time(letter, backend, "by hand"), 1.25, False)]

    def markdown(self) -> str:
        """The whole report."""
        parts = ["# Training loops, best of several epochs, all contenders in turns"]
        parts += [f"## {letter}: {WORKLOADS[letter].title}\n\n{self.table(letter)}" for letter in self.letters()]
        targets = self.targets()
        if targets:
            head = ["workload", "backend", "claim", "seen", "target", ""]
            parts.append("## What was asked\n\n" + table([head, *targets]))
        wrong = self.wrong()
        if wrong:
            parts.append("## Errors\n\n" + "\n".join(f"- {line}" for line in wrong))
        return "\n\n".join(parts) + "\n"

    def picture(self, path: Path) -> None:
        """Bars on a logarithmic axis, a panel a workload."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        colors = {"tensorflow": "#e8853d", "jax": "#4a7ebb", "torch": "#a23b3b"}
        panels = [[one for one in self.seen if one.workload == letter and one.microseconds] for letter in self.letters()]
        figure = Figure(figsize=(10, 1 + sum(0.8 + 0.24 * len(panel) for panel in panels)), layout="constrained")
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=[2 + len(panel) for panel in panels])[:, 0]
        for letter, panel, ax in zip(self.letters(), panels, axes, strict=True):
            times = [one.microseconds or 0.0 for one in panel]
            bars = ax.barh(range(len(panel)), times, color=[colors[one.backend] for one in panel])
            for one, bar in zip(panel, bars, strict=True):
                if one.contender.startswith("kustom"):
                    bar.set(edgecolor="black", linewidth=1.5)
            ax.bar_label(bars, [number(time, 1 if time < 100 else 0) for time in times], padding=3, fontsize=8)
            ax.set(title=f"{letter}: {WORKLOADS[letter].title}", xscale="log", xlabel="µs a step")
            ax.set_yticks(range(len(panel)), [one.contender for one in panel], fontsize=8)
            ax.invert_yaxis()
            ax.margins(x=0.1)
        axes[0].legend(handles=[Patch(color=color, label=name) for name, color in colors.items()], fontsize=8)
        figure.savefig(path, dpi=120)
