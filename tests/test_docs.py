"""The Python of the documentation's pages runs, cell after cell."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["trains"])
def test_page_runs(page, capsys):
    cells = CELL.findall((DOCS / f"{page}.md").read_text("utf-8"))
    namespace: dict[str, object] = {"__name__": page}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{page}.md, cell {number}", "exec"), namespace)
    assert len(cells) > 5
    assert capsys.readouterr().out
