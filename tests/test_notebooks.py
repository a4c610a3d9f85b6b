"""The notebooks run, and what is committed is what readers shall see."""

import copy
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests import notebooks

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
BYTES = 500_000

by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_all_notebooks_are_known_and_documented():
    known = {"arbitrary_adapter", "lora_and_back", "many_tasks", "plain_loop", "rank_study"}
    assert {path.stem for path in NOTEBOOKS} == known
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    assert all(f"(notebooks/{name}.ipynb)" in page for name in known)


@pytest.mark.slow
@by_notebook
def test_notebook_runs(path, tmp_path):
    """In a process of its own: the warnings of a kernel's machinery are not the suite's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "tests.notebooks", str(path), "--output", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    # A busy machine takes longer by the clock.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    executed, committed = notebooks.read(tmp_path / path.name), notebooks.read(path)
    assert notebooks.num_figures(executed) == notebooks.num_figures(committed)


@by_notebook
def test_committed_notebook_is_clean(path):
    notebook = notebooks.read(path)
    assert notebooks.problems(notebook) == []
    assert notebooks.num_figures(notebook) >= 2
    assert path.stat().st_size < BYTES
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"
    assert notebook["cells"][0]["cell_type"] == "markdown"


def test_problems_are_found():
    cell = {
        "cell_type": "code",
        "execution_count": 1,
        "metadata": {},
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "a/b and 1 / 2"}],
        "source": ["x = 1"],
    }
    clean = {"cells": [cell], "metadata": notebooks.METADATA}
    assert notebooks.problems(clean) == []
    changes = [
        {"execution_count": None},
        {"metadata": {"execution": {"iopub.execute_input": "2026"}}},
        {"outputs": [{"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}]},
        {"outputs": [{"output_type": "stream", "name": "stderr", "text": "a warning"}]},
        {"outputs": [{"output_type": "stream", "name": "stdout", "text": "in /opt/someone/folder"}]},
        {"outputs": [{"output_type": "display_data", "data": {"text/plain": ["/opt/someone/x"]}}]},
        {"source": ["open('/opt/someone/x')"]},
    ]
    for change in changes:
        bad = copy.deepcopy(clean)
        bad["cells"][0] |= change
        assert notebooks.problems(bad), change
    assert notebooks.problems(clean | {"metadata": {**notebooks.METADATA, "host": "x"}})
