"""Execute notebooks: `python -m tests.notebooks examples/*.ipynb` writes each in place with its outputs.

What is written is the same on every machine, up to the figures' pixels and the last digits of numbers: no
times, no versions, no identifiers drawn at random.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 300  # of a cell, by the clock
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm without ipywidgets
    "TOKENIZERS_PARALLELISM": "false",
}
STYLE = re.compile(r"\x1b\[[0-9;]*m")  # of commands that a notebook calls
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:[\w.+-]+/)+|\b[A-Za-z]:\\\w")


def execute(path: Path) -> dict[str, Any]:
    """The notebook with fresh outputs, run by this interpreter in a temporary folder.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised, or took longer than `SECONDS`.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class Kernel(AsyncKernelManager):
        """The interpreter that runs this, whatever kernels the user has installed."""

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "-f",
                "{connection_file}",
                "--log-level=ERROR",
            ]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # MPLBACKEND=Agg would keep figures from the notebook; the kernel's own choice shows them.
        inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            resources={"metadata": {"path": folder}},
            kernel_manager_class=Kernel,
        )
        own = {
            "IPYTHONDIR": str(Path(folder) / ".ipython"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # for !ttnet
        }
        client.execute(env={**inherited, **ENVIRONMENT, **own})
    return clean(notebook)


def clean(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without what differs from one execution, or machine, to the next."""
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        own = {"id": f"cell-{number:02d}", "metadata": {}}
        if "outputs" in cell:
            own["outputs"] = _joined(cell["outputs"])
        cells.append({**cell, **own})
    return {**notebook, "cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs with each stretch of a stream in one piece, however it arrived, in plain text."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] == "stream":
            output = {**output, "text": STYLE.sub("", _text(output["text"]))}
        if found and output["output_type"] == "stream" and found[-1].get("name") == output["name"]:
            found[-1] = {**output, "text": found[-1]["text"] + output["text"]}
        else:
            found.append(output)
    return found


def read(path: Path) -> dict[str, Any]:
    """The notebook of a file."""
    return json.loads(path.read_text("utf-8"))


def write(path: Path, notebook: dict[str, Any]) -> None:
    """Write a notebook as Jupyter does, so that differences are those of content."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs of all cells."""
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


def num_figures(notebook: dict[str, Any]) -> int:
    """How many images the outputs have."""
    return sum(
        any(kind.startswith("image/") for kind in output.get("data", ())) for output in outputs(notebook)
    )


def problems(notebook: dict[str, Any]) -> list[str]:
    """What a reader shall not meet: errors, warnings, paths of a machine, cells that did not run."""
    found = []
    for cell in notebook["cells"]:
        head = _text(cell["source"]).partition("\n")[0]
        if cell["metadata"]:
            found.append(f"cell {head!r}: metadata {cell['metadata']}")
        if cell["cell_type"] == "code" and cell["execution_count"] is None:
            found.append(f"cell {head!r}: never executed")
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"cell {head!r}: {output['output_type']} {_text(output.get('text', ''))[:300]}")
        for text in (_text(cell["source"]), *map(_shown, cell.get("outputs", ()))):
            match = ABSOLUTE_PATH.search(text)
            if match is not None:
                found.append(f"cell {head!r}: the path {match[0]!r}")
    if notebook["metadata"] != METADATA:
        found.append(f"metadata {notebook['metadata']}")
    return found


def _shown(output: dict[str, Any]) -> str:
    texts = [_text(output.get("text", ""))]
    texts += [_text(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(texts)


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def main() -> int:
    """Execute the notebooks that the command line names; the exit status says whether all are in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="a folder to write to, instead of in place")
    options = parser.parse_args()
    status = 0
    for path in options.notebooks:
        notebook = execute(path)
        for problem in problems(notebook):
            sys.stderr.write(f"{path.name}: {problem}\n")
            status = 1
        write((options.output or path.parent) / path.name, notebook)
        sys.stdout.write(f"{path.name}: {num_figures(notebook)} figures\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
