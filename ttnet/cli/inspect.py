"""The command `ttnet inspect`: what a saved adapter is, read from its files alone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ttnet.cli.errors import reported
from ttnet.errors import ConfigError

if TYPE_CHECKING:
    from ttnet.adapters.files import SavedAdapter

ADAPTER = "adapter"
SHOWN = 6
"""Singular values shown of each bond, and labels of each axis."""


@reported
def inspect(
    directory: Annotated[
        Path, typer.Argument(help="Where an adapter was saved, or the output of `ttnet finetune`.")
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, whole spectra included.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Show a saved adapter: pattern, axes, ranks, spectrum and entropy of each bond, size beside LoRA's."""
    del debug
    from ttnet.adapters import files
    from ttnet.cli.report import RESULT, read_result

    inner = directory / ADAPTER
    result = directory / RESULT
    method = read_result(result).get("method", "tt") if result.is_file() else "tt"
    if method != "tt":
        raise ConfigError(f"{directory}: this run has no tensor train (--method {method}); see {result}")
    found = describe(files.read(inner if (inner / files.CONFIG_NAME).is_file() else directory))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(Console(highlight=False), directory, found)


def describe(saved: "SavedAdapter") -> dict[str, Any]:
    """Everything that the files of an adapter tell.

    Args:
        saved: What was read.

    Returns:
        Plain data: `pattern`, `axes`, `matrices`, `ranks`, `bonds` with spectrum and entropy (in nats), and
        `parameters` beside `lora_parameters`, those of LoRA at the largest rank on the same matrices.
    """
    from ttnet.cli.report import bond_labels

    layout, train = saved.layout, saved.train
    modes = [" ".join(mode) for mode in layout.pattern.modes]
    labels = {axis.name: [str(label) for label in axis.labels or ()] for axis in layout.axes}
    rank = max(train.ranks)
    count = sum(core.numel() for core in train.cores)
    lora = sum(rank * (site.in_features + site.out_features) for site in layout.sites)
    bonds = [
        {"between": name, "rank": size, "spectrum": values.tolist(), "entropy": train.entropy(bond)}
        for bond, (name, size, values) in enumerate(
            zip(bond_labels(layout.pattern.text), train.ranks[1:-1], train.spectra(), strict=True)
        )
    ]
    return {
        "pattern": layout.pattern.text,
        "base_model": {name: saved.base.get(name) for name in ("class", "name")},
        "alpha": saved.config.alpha,
        "scale": saved.scale,
        "init": list(saved.config.core_inits),
        "dtype": str(train.dtype).removeprefix("torch."),
        "norm": float(train.norm()),
        "axes": [
            {"axis": name, "size": size, "labels": [label for part in mode for label in labels.get(part, [])]}
            for name, size, mode in zip(modes, train.shape, layout.pattern.modes, strict=True)
        ],
        "matrices": [site.name for site in layout.sites],
        "ranks": list(train.ranks),
        "bonds": bonds,
        "parameters": count,
        "saved_module_parameters": sum(value.numel() for value in saved.modules.values()),
        "lora_rank": rank,
        "lora_parameters": lora,
    }


def _show(console: Console, directory: Path, found: dict[str, Any]) -> None:
    base = found["base_model"]
    shown = f"[bold]{escape(str(directory))}[/]: {escape(found['pattern'])}"
    console.print(f"{shown}, alpha {found['alpha']:g}", soft_wrap=True)
    console.print(escape(f"made on {base['class']} ({base['name'] or 'unnamed'})"), soft_wrap=True)
    axes = Table("mode", "size", "labels", title=f"{len(found['matrices'])} matrices", title_justify="left")
    for axis in found["axes"]:
        labels = ", ".join(axis["labels"][:SHOWN]) + (", ..." if len(axis["labels"]) > SHOWN else "")
        axes.add_row(escape(axis["axis"]), str(axis["size"]), escape(labels))
    console.print(axes)
    bonds = Table(
        "bond", "rank", "entropy", "singular values", title=f"norm {found['norm']:.4g}", title_justify="left"
    )
    for bond in found["bonds"]:
        values = " ".join(f"{value:.3g}" for value in bond["spectrum"][:SHOWN])
        more = " ..." if len(bond["spectrum"]) > SHOWN else ""
        bonds.add_row(escape(bond["between"]), str(bond["rank"]), f"{bond['entropy']:.3f}", values + more)
    console.print(bonds)
    times = found["lora_parameters"] / found["parameters"]
    console.print(
        f"{found['parameters']:,} parameters; LoRA of rank {found['lora_rank']} on the same matrices: "
        f"{found['lora_parameters']:,} ({times:.1f} times); "
        f"saved beside them: {found['saved_module_parameters']:,}",
        soft_wrap=True,
    )
