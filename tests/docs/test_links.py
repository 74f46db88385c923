"""Every link between the pages leads somewhere, and every cell of the notebook has its place in the guide."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# The notebook up to 12.3.6 has no In [16], and 12.3.7 and 12.3.8 count again from In [2], with some left out; 12.3.9 goes on
# from there.
CELLS = [
    *(f"In [{number}]" for number in range(1, 24) if number != 16),
    "In [2] of 12.3.7",
    *(f"In [{number}] of 12.3.8" for number in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16)),
    *(f"In [{number}] of 12.3.9" for number in (18, 19, 21, 22)),
]


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(without_code(page)):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page if not file else (page.parent / file).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_of_the_notebook_has_its_place_in_the_guide(cell: str) -> None:
    index = (ROOT / "docs" / "guide" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| {re.escape(cell)} \| .+ \| \[.+\]\(.+\) \|$", index, flags=re.MULTILINE)
