"""The plugin that pytest loads wherever kustom is installed: an option, and nothing else until it is used.

It stands beside the package, since importing anything of `kustom` chooses a backend, which is not for a run of other tests.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--kustom-check`."""
    parser.getgroup("kustom").addoption(
        "--kustom-check",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="check the custom Keras parts of a package, a file or a folder: a test for each part and check",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks to what was collected."""
    targets = config.getoption("--kustom-check")
    if targets:
        from kustom.checking.pytest_items import items_of

        items += items_of(session, targets)
