"""The Python of the documentation's pages runs, block after block."""

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    """The cells of an executed page, or the Python blocks of another."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    return CELL.findall(text) or BLOCK.findall(text)


PAGES = [page.stem for page in sorted(DOCS.glob("*.md")) if blocks(page.stem)]


def test_the_guides_have_code():
    assert {"trains", "scheduler", "adapters", "dmrg"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, block in enumerate(blocks(page)):
            exec(compile(block, f"{page}.md, block {number}", "exec"), namespace)
