"""Runs every Python block of the documentation, page by page, from top to bottom."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    return sorted(page for page in DOCS.glob("*.md") if BLOCK.search(page.read_text()))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_python_block_runs(page: Path) -> None:
    text = page.read_text()
    namespace: dict[str, object] = {"__name__": f"docs_{page.stem}"}

    for found in BLOCK.finditer(text):
        # Blank lines before the block make line numbers those of the page.
        padding = "\n" * text[: found.start(1)].count("\n")
        exec(compile(padding + found[1], str(page), "exec"), namespace)

    assert namespace
