"""The tables of the documentation, from the figures of `trains.json`."""

from typing import Any

Record = dict[str, Any]


def render(record: Record) -> str:
    """Markdown of all runs: a summary of each, then its rows in full."""
    parts = ["<!-- Written by benchmarks/trains.py from trains.json. -->\n"]
    if not record["runs"]:
        parts.append("Nothing has been measured yet.\n")
    for key, run in record["runs"].items():
        parts.append(f"### {key[0].upper()}{key[1:]}\n")
        parts.append(_conditions(run))
        parts.append(
            _table(
                ["CPU seconds", "ttnet", "fastest other", "ratio", "floor", "over the floor"], _summary(run)
            )
        )
        for row in run["rows"].values():
            parts.append(f"#### {row['title']}\n")
            parts.append(_row_table(row))
    return "\n".join(parts)


def _conditions(run: Record) -> str:
    environment = run["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    dates = sorted({row["date"] for row in run["rows"].values()})
    days = " to ".join(dict.fromkeys(dates[:1] + dates[-1:]))
    load = max(row["load_average"][0] for row in run["rows"].values())
    return (
        f"{environment['cpu']}, {run['threads']} of {environment['cores']} cores used; Python "
        f"{environment['python']}, {versions}; seed {run['seed']}; {days}; "
        f"load average before a row at most {load:.2f}.\n"
    )


def _summary(run: Record) -> list[list[str]]:
    lines = []
    for row in run["rows"].values():
        own = row["rivals"].get("ttnet", {})
        others = {
            name: record
            for name, record in row["rivals"].items()
            if not name.startswith("ttnet") and record.get("accurate") and "cpu_seconds" in record
        }
        name = min(others, key=lambda label: _cpu(others[label]), default=None)
        floor = min(row["floors"].items(), key=lambda item: _cpu(item[1]), default=None)
        lines.append(
            [
                row["title"],
                _seconds(own),
                f"{name} {_seconds(others[name])}" if name else "",
                f"{_cpu(others[name]) / _cpu(own):.2f}" if name and "cpu_seconds" in own else "",
                f"{floor[0]} {_seconds(floor[1])}" if floor else "",
                f"{_cpu(own) / _cpu(floor[1]):.2f}" if floor and "cpu_seconds" in own else "",
            ]
        )
    return lines


def _row_table(row: Record) -> str:
    records = row["rivals"]
    has_evaluations = any("evaluations" in record for record in records.values())
    has_memory = any("peak_bytes" in record for record in records.values())
    header = ["", "CPU s", "lowest to highest", "wall s", "to ttnet", "error"]
    header += ["evaluations"] * has_evaluations + ["peak MiB"] * has_memory
    lines = []
    for name, record in records.items():
        if "skipped" in record:
            lines.append([name, record["skipped"].replace("|", "\\|"), *[""] * (len(header) - 2)])
            continue
        mark = "" if record["accurate"] else " (too large)"
        line = [name, *_times(record), f"{record['error']:.1e}{mark}"]
        line += [f"{record.get('evaluations', '')}"] * has_evaluations
        line += [_mebibytes(record.get("peak_bytes"))] * has_memory
        lines.append(line)
    for name, record in row["floors"].items():
        lines.append([f"*{name}*", *_times(record), *[""] * (len(header) - 5)])
    return f"Errors up to {row['allowed_error']:.2g} are accepted.\n\n" + _table(header, lines)


def _times(record: Record) -> list[str]:
    cpu = record["cpu_seconds"]
    ratio = record.get("cpu_ratio_to_ttnet")
    return [
        _seconds(record),
        f"{_short(cpu['low'])} to {_short(cpu['high'])}",
        _short(record["wall_seconds"]["median"]),
        "" if ratio is None else f"{ratio:.2f}",
    ]


def _cpu(record: Record) -> float:
    return record["cpu_seconds"]["median"]


def _seconds(record: Record) -> str:
    return _short(_cpu(record)) if "cpu_seconds" in record else record.get("skipped", "")


def _short(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds >= 0.001 else f"{seconds:.2e}"


def _mebibytes(peak: int | str | None) -> str:
    return f"{peak / 2**20:.0f}" if isinstance(peak, int) else peak or ""


def _table(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines]) + "\n"
