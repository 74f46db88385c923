"""Load a run's model in this process and compare it with what was recorded: `python regression_check.py RUNFOLDER`.

Only kustom is imported, and what the file wants of the module that it is told to trust, so that what agrees here comes
from the file. Ends with the exit status 1 where loss or predictions differ.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import kustom

# isort: split
import numpy as np

BATCH = 1024
# In units of the standardised target: sums of float32 differ in the last digits on another backend or machine.
TOLERANCE = 1e-5


def agree(folder: Path) -> bool:
    """Print both losses and the largest difference of the predictions on the held-out rows."""
    with np.load(folder / "held_out.npz") as recorded:
        inputs, targets, predictions, loss = (recorded[name] for name in ("inputs", "targets", "predictions", "loss"))
    model: Any = kustom.load(folder / "model.keras", trust="regression_parts")
    loaded_loss = model.evaluate(inputs, targets, batch_size=BATCH, verbose=0, return_dict=True)["loss"]
    difference = float(np.max(np.abs(model.predict(inputs, batch_size=BATCH, verbose=0) - predictions)))
    print(
        f"loaded in a new process: loss {loaded_loss:.8g}, saved {float(loss):.8g}; "
        f"predictions of {len(inputs)} rows differ by at most {difference:.2g}"
    )
    return difference <= TOLERANCE and math.isclose(loaded_loss, float(loss), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {Path(__file__).name} RUNFOLDER")
    if not agree(Path(sys.argv[1])):
        sys.exit("the loaded model is not the one that was saved")
