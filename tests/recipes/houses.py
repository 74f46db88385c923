"""A table that has what tables have: gaps, text, a flag, a column without any value."""

from __future__ import annotations

import numpy as np
import pandas as pd


def houses(rows: int) -> pd.DataFrame:
    """Prices that depend on an area in a curve, and on a town."""
    rng = np.random.default_rng(0)
    area = rng.uniform(20, 200, rows)
    town = rng.choice(["Ede", "Epe", "Elst"], rows)
    price = 1000 * area * (1.5 + np.sin(area / 15)) + 50_000 * (town == "Ede") + rng.normal(0, 5000, rows)
    frame = pd.DataFrame({"area": area, "town": town, "garden": rng.random(rows) < 0.5, "empty": np.nan, "price": price})
    frame.loc[::10, "area"] = np.nan
    frame.loc[5::10, "town"] = np.nan
    frame.loc[3:5, "price"] = np.nan
    return frame
