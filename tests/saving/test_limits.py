"""How much a file may ask for, and what it is told when it asks for more."""

from __future__ import annotations

import pytest

from kustom import errors
from kustom.saving.limits import Limits


def test_a_limit_says_which_to_raise():
    with pytest.raises(errors.LimitError, match=r"^a\.keras: config\.json: the member is 2,000, and max_bytes .*max_bytes=2_000"):
        Limits(max_bytes=1000).hold("max_bytes", 2000, "the member", file="a.keras", part="config.json")
    Limits(max_bytes=1000).hold("max_bytes", 1000, "the member")


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
def test_a_limit_is_a_whole_number(value):
    with pytest.raises(errors.LimitError, match="max_depth= is a whole number from 1 on"):
        Limits(max_depth=value)
