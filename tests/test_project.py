"""The package as a whole: what importing it costs, what it exports, and that the README runs."""

import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import ttnet

ROOT = Path(__file__).parents[1]
LAZY = ("transformers", "peft", "accelerate", "datasets", "matplotlib", "tensorly", "pandas", "typer", "rich")
README_BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light():
    loaded = run_python(f"import sys, ttnet; print([name for name in {LAZY} if name in sys.modules])")
    assert loaded == "[]"


def test_version_is_the_installed_one():
    assert ttnet.__version__ == version("ttnet")


def test_package_is_typed():
    assert (Path(ttnet.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", ttnet.__all__)
def test_exports_exist_and_are_documented(name):
    exported = getattr(ttnet, name)
    if inspect.isclass(exported) or inspect.isroutine(exported) or inspect.ismodule(exported):
        assert inspect.getdoc(exported), f"ttnet.{name} has no docstring"


def test_exports_are_unique():
    assert len(set(ttnet.__all__)) == len(ttnet.__all__)


def test_api_reference_lists_every_module():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "ttnet").rglob("[!_]*.py")
    }
    expected = {name for name in modules if not name.startswith("ttnet.cli.")}
    listed = re.findall(r"^   (ttnet\.[\w.]+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == expected


def test_readme_has_an_example_for_each_floor():
    assert len(README_BLOCKS) == 4


@pytest.mark.parametrize("block", range(len(README_BLOCKS)))
def test_readme_example_runs(block, capsys):
    exec(compile(README_BLOCKS[block], f"README.md, python block {block}", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out
