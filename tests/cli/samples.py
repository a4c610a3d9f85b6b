"""Documents whose label can be read off their first word."""

import json
from pathlib import Path

import numpy as np

WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "book", "the", "a", "was", "and"]


def documents(count: int, seed: int, *, pair: bool = False) -> list[dict[str, object]]:
    """Rows whose label says whether the first word praises."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for _ in range(count):
        label = int(generator.integers(2))
        words = [
            WORDS[generator.integers(3) + 3 * (1 - label)],
            *generator.choice(WORDS[6:], generator.integers(2, 8)),
        ]
        row: dict[str, object] = {"sentence1": " ".join(words), "label": label}
        if pair:
            row["sentence2"] = " ".join(generator.choice(WORDS[6:], 3))
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
