"""The harness of the benchmarks runs: tiny rows, valid JSON, and a table that is made of it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "trains.py"
RESULTS = ROOT / "benchmarks" / "results"


def run_script(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """All rows at tiny sizes, with a library that can be imported here and one that cannot."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "torchtt.py").write_text("raise ModuleNotFoundError('blocked for this test')\n")
    code = f"import runpy, sys; sys.path.insert(0, {str(folder)!r}); sys.argv = sys.argv[1:]; "
    code += (
        f"sys.path.insert(0, {str(SCRIPT.parent)!r}); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    options = ["--tiny", "--rounds", "2", "--dtype", "float64", "--no-memory"]
    options += ["--rivals", "ttnet", "tensorly", "torchTT", "--results", str(folder / "trains.json")]
    # With the settings made already it need not start itself anew.
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    settings = dict.fromkeys(threads, "1") | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, "trains.py", *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | settings,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "trains.json").read_text()), (folder / "trains.md").read_text(), folder


def test_every_row_is_measured_and_right(tiny):
    record, _, _ = tiny
    rows = record["runs"]["1 thread, float64"]["rows"]
    assert len(rows) >= 11
    for name, row in rows.items():
        own = row["rivals"]["ttnet"]
        assert own["accurate"], (name, own)
        assert own["error"] <= row["allowed_error"]
        assert own["cpu_ratio_to_ttnet"] == 1
        for record in (own, *row["floors"].values()):
            for clock in ("cpu_seconds", "wall_seconds"):
                seconds = record[clock]
                assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"] < math.inf
            assert record["rounds"] == 2
    assert rows["cross"]["rivals"]["ttnet"]["evaluations"] > 0
    assert rows["tt-svd-20"]["rivals"]["tensorly, rank given"]["accurate"]


def test_an_absent_library_is_named_with_the_reason(tiny):
    record, table, _ = tiny
    skipped = record["runs"]["1 thread, float64"]["rows"]["dot"]["rivals"]["torchTT"]["skipped"]
    assert skipped == "not installed: blocked for this test"
    assert skipped in table


def test_the_record_says_how_it_was_taken(tiny):
    run = tiny[0]["runs"]["1 thread, float64"]
    assert (run["threads"], run["dtype"], run["seed"]) == (1, "float64", 0)
    assert {"torch", "ttnet", "numpy"} <= {name for name, v in run["environment"]["versions"].items() if v}
    assert all(len(row["load_average"]) == 3 for row in run["rows"].values())


def test_a_second_run_keeps_what_is_there(tiny):
    _, _, folder = tiny
    before = json.loads((folder / "trains.json").read_text())
    target = folder / "more.json"
    target.write_text(json.dumps(before))
    common = ["--tiny", "--rounds", "1", "--rivals", "ttnet", "--results", str(target)]
    run_script("--rows", "gather", "--dtype", "float32", *common)
    after = json.loads(target.read_text())
    assert set(after["runs"]) == {"1 thread, float64", "1 thread, float32"}
    assert after["runs"]["1 thread, float64"] == before["runs"]["1 thread, float64"]
    peak = after["runs"]["1 thread, float32"]["rows"]["gather"]["rivals"]["ttnet"]["peak_bytes"]
    assert isinstance(peak, int)
    assert peak >= 0


def test_table_has_a_line_for_each_row_and_rival(tiny):
    record, table, _ = tiny
    rows = record["runs"]["1 thread, float64"]["rows"]
    for row in rows.values():
        assert f"| {row['title']} |" in table
        assert f"#### {row['title']}" in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert sum(line.startswith("| ttnet |") for line in lines) == len(rows)
    assert all(line.count(" |") >= 6 for line in lines)


def test_documented_table_is_that_of_the_figures(tmp_path):
    copy = tmp_path / "trains.json"
    copy.write_text((RESULTS / "trains.json").read_text())
    run_script("--table", "--results", str(copy))
    assert copy.with_suffix(".md").read_text() == (RESULTS / "trains.md").read_text()
