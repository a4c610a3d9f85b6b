"""The tables of the documentation, from the figures of `adapters.json`."""

from typing import Any

Record = dict[str, Any]

TITLES = {
    "step": "Forward and backward, ratio to the frozen base",
    "compiled": "The same under torch.compile",
    "memory": "Extra peak memory of a step over the frozen base, MiB",
    "layers": "Extra milliseconds a layer",
    "generation": "Generated tokens a second",
}


def render(record: Record) -> str:
    """Markdown of all parts, device by device."""
    parts = ["<!-- Written by benchmarks/adapters.py from adapters.json. -->\n"]
    for device, measured in record.items():
        for part, title in TITLES.items():
            if part in measured:
                parts += [f"### {title} ({device})\n", _conditions(measured[part]["conditions"])]
                parts.append(_table(measured[part]["rows"], part))
    return "\n".join(parts)


def _conditions(conditions: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items() if version)
    used = f"{conditions['threads']} of {conditions['cores']} cores"
    return (
        f"{conditions['device']}, {conditions['cpu']}, {used}; Python {conditions['python']}, {versions}; "
        f"{conditions['dtype']}, batch {conditions['batch']}, {conditions['rounds']} rounds, "
        f"{conditions['clock']} time; {conditions['date']}, load average {conditions['load_average'][0]}; "
        f"VeRA of rank {conditions['vera_rank']}.\n"
    )


def _table(rows: list[Record], part: str) -> str:
    names = list(rows[0]["extra"] if part == "memory" else rows[0]["contestants"])
    shown = [name for name in names if name != "base" or part in ("layers", "generation")]
    if part == "layers":
        shown = [name for name in shown if name != "base"]
    head = ["model", "targets", "rank", *_own_head(part), *shown]
    if part in ("step", "compiled"):
        head += ["extra of 4D / LoRA", "by the fastest rounds"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["model"], row["targets"], str(row["rank"])]
        cells += [str(row[key]) for key in _own_head(part)]
        cells += [_cell(row, name, part) for name in shown]
        if part in ("step", "compiled"):
            extra = row["contestants"]["metatt-4d"].get("extra", {})
            cells += [f"{extra[key]:.2f}" if key in extra else "" for key in ("median", "low")]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _own_head(part: str) -> list[str]:
    return {"layers": ["layers"], "generation": ["prompts"]}.get(part, [])


def _cell(row: Record, name: str, part: str) -> str:
    if part == "memory":
        return f"{row['extra'][name] / 2**20:.1f}"
    contestant = row["contestants"][name]
    if "skipped" in contestant:
        return contestant["skipped"]
    if part == "layers":
        return f"{1e3 * contestant['extra_per_layer']:.2f}"
    if part == "generation":
        return f"{contestant['tokens_per_second']:.0f}"
    return f"{contestant['ratio']['median']:.3f}"
