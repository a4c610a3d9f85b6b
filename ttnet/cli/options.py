"""What `ttnet finetune` was asked to do, checked before anything is loaded."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from ttnet.errors import ConfigError, FormatError, RankError

Rank = int | tuple[int, ...]
METHODS = ("tt", "lora", "classifier")
LEARNING_RATES = {"tt": 2e-2, "lora": 5e-3, "classifier": 5e-3}
DMRG_MODES = ("truncate", "paper", "two-site")
CUTS = ("plain", "inputs")
STATES = ("transport", "reset")
GAUGES = ("nearest", "canonical", "balanced")
DTYPES = ("auto", "float32", "bf16", "fp16")
PROBLEMS = ("auto", "classification", "regression")
ATTENTION = ("auto", "eager", "sdpa")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")

# A resumed run may change these: they do not touch the numbers.
FREE_ON_RESUME = frozenset(
    {"output", "resume", "overwrite", "quiet", "threads", "report_to", "compare_classifier"}
)


# Options that came after the first version.
LATER = frozenset({"cut", "held_batches"})


def parse_rank(text: str, argument: str = "--rank") -> Rank:
    """Read a rank: `8` for every bond, or `8/12/8` for each of them.

    Args:
        text: What was typed.
        argument: Name for messages.

    Returns:
        The rank, or one for each bond.

    Raises:
        RankError: It is no positive whole number.
    """
    try:
        ranks = tuple(int(part) for part in text.strip().split("/"))
    except ValueError:
        raise RankError(
            f"{argument} {text!r}: expected a whole number like 8, or one for each bond like 8/12/8"
        ) from None
    if min(ranks) < 1:
        raise RankError(f"{argument} {text!r}: a rank is at least 1; give a larger one")
    return ranks[0] if len(ranks) == 1 else ranks


def parse_ranks(text: str) -> dict[int, Rank]:
    """Read a rank schedule: `0:12,2:8` starts at 12 and sweeps down to 8 after two epochs.

    Args:
        text: Pairs `completed epochs:rank`, separated by commas.

    Returns:
        Rank by completed epochs, in increasing order of epochs.

    Raises:
        ConfigError: A pair cannot be read, or epochs do not increase.
        RankError: A rank is below 1.
    """
    expected = "expected EPOCHS:RANK pairs like 0:12,2:8,4:6"
    schedule: dict[int, Rank] = {}
    for pair in text.split(","):
        epoch, colon, rank = pair.strip().partition(":")
        if not colon or not epoch.strip().isdigit() or not rank.strip():
            raise ConfigError(f"--ranks {text!r}: cannot read {pair.strip()!r}; {expected}")
        if schedule and int(epoch) <= max(schedule):
            raise ConfigError(f"--ranks {text!r}: epochs must increase, {int(epoch)} does not; {expected}")
        schedule[int(epoch)] = parse_rank(rank, f"--ranks {text!r}: rank")
    return schedule


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Split a comma list, dropping blanks.

    Args:
        text: What was typed, or None.

    Returns:
        The names, or None where nothing was typed.
    """
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip()) or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Every option of a run, as `ttnet finetune --help` describes them; stored in `options.json`."""

    model: str
    output: str
    task: str | None = None
    data_dir: str | None = None
    train_file: str | None = None
    dev_file: str | None = None
    test_file: str | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str = "label"
    problem: str = "auto"
    metric: str | None = None
    train_samples: int | None = None
    full: bool = False
    data_seed: int = 0

    method: Literal["tt", "lora", "classifier"] = "tt"
    pattern: str = "4d"
    rank: Rank | None = None
    ranks: dict[int, Rank] | None = None
    max_parameters: int | None = None
    max_error: float | None = None
    max_loss_increase: float | None = None
    min_rank: int = 1
    max_cut: int = 4
    patience: int = 1
    rank_warmup: int = 1
    dmrg_mode: str = "truncate"
    cut: str = "plain"
    held_batches: int | None = None
    state: str = "transport"
    gauge: str | None = None
    alpha: float = 1.0
    init: tuple[str, ...] | None = None
    target_modules: tuple[str, ...] | str | None = None

    lr: float | None = None
    head_lr: float | None = None
    weight_decay: float = 0.0
    warmup_ratio: float = 0.06
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    epochs: int = 3
    batch_size: int = 32
    gradient_accumulation: int = 1
    max_length: int = 128
    dropout: float | None = None
    attention: str = "auto"
    seed: int = 0
    dtype: str = "float32"

    threads: int | None = None
    save_steps: int | None = None
    keep_checkpoints: int = 3
    report_to: tuple[str, ...] | None = None
    compare_classifier: bool = False
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Check every value that can be checked without the model and the data."""
        self._check_choices()
        self._check_numbers()
        self._check_ranks()
        self._check_sweeps()
        files = [self.train_file, self.dev_file, self.test_file]
        if self.task is None and self.train_file is None:
            raise ConfigError("no data named: give --task NAME, or --train-file FILE with --text-columns")
        if self.data_dir is not None and self.task is None:
            raise ConfigError(
                "--data-dir needs --task: the files are read from DATA_DIR/TASK/{train,dev,test}.jsonl"
            )
        if any(files) and self.data_dir is not None:
            raise ConfigError(
                "--data-dir and --train-file/--dev-file/--test-file exclude each other; give one of them"
            )
        if any(files) and self.train_file is None:
            raise ConfigError("--dev-file and --test-file need --train-file as well")
        if self.full and self.train_samples is not None:
            raise ConfigError("--full and --train-samples exclude each other; give one of them")
        if self.resume and self.overwrite:
            raise ConfigError("--resume and --overwrite exclude each other; give one of them")

    def _check_choices(self) -> None:
        for name, choices in (
            ("method", METHODS),
            ("dmrg_mode", DMRG_MODES),
            ("cut", CUTS),
            ("state", STATES),
            ("gauge", GAUGES),
            ("dtype", DTYPES),
            ("problem", PROBLEMS),
            ("schedule", SCHEDULES),
            ("attention", ATTENTION),
        ):
            value = getattr(self, name)
            if value not in choices and not (name == "gauge" and value is None):
                raise ConfigError(f"{argument(name)} {value!r} is unknown; choose from {', '.join(choices)}")

    def _check_numbers(self) -> None:
        whole = ("epochs", "batch_size", "gradient_accumulation", "max_length", "keep_checkpoints")
        adaptive = ("min_rank", "max_cut", "patience")
        optional = ("train_samples", "threads", "save_steps", "max_parameters", "held_batches")
        for name in (*whole, *adaptive, *optional):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{argument(name)} {value}: expected a whole number, at least 1")
        for name in ("lr", "head_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{argument(name)} {value}: expected a positive number")
        tolerances = ("max_error", "max_loss_increase")
        for name in ("weight_decay", "max_grad_norm", "rank_warmup", "seed", "data_seed", *tolerances):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{argument(name)} {value}: expected a number, at least 0")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"--dropout {self.dropout}: expected a share, from 0 to below 1")
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(
                f"--warmup-ratio {self.warmup_ratio}: expected a share of the steps, from 0 to below 1"
            )
        if not abs(self.alpha) < float("inf") or self.alpha == 0:
            raise ConfigError(f"--alpha {self.alpha}: expected a finite number other than 0")

    def _check_ranks(self) -> None:
        if self.method != "tt" and (self.ranks is not None or self.adaptive):
            raise ConfigError(
                f"--method {self.method} has a fixed rank: --ranks and adaptive ranks need --method tt"
            )
        if self.ranks is not None and self.adaptive:
            raise ConfigError(
                "--ranks and --max-parameters/--max-error/--max-loss-increase exclude each other; give one"
            )
        if self.dmrg_mode == "paper" and self.gauge not in (None, "canonical"):
            raise ConfigError(
                f"--gauge {self.gauge}: --dmrg-mode paper knows canonical alone; leave --gauge out"
            )
        if self.method == "lora" and not isinstance(self.starting_rank, int):
            raise RankError(f"--rank {self.rank}: --method lora takes one whole number")
        if self.ranks is None:
            return
        first = next(iter(self.ranks))
        if first == 0 and self.rank is not None and self.rank != self.ranks[0]:
            raise ConfigError(f"--rank {self.rank} and --ranks 0:{self.ranks[0]} disagree; give one of them")
        if first != 0 and self.rank is None:
            raise ConfigError(f"--ranks begins at epoch {first}: begin with 0:RANK, or give --rank")
        late = [epoch for epoch in self.ranks if epoch >= self.epochs]
        if late:
            raise ConfigError(
                f"--ranks sweeps after {late[0]} completed epochs, but --epochs {self.epochs} ends there; "
                "use a smaller key or more epochs"
            )

    def _check_sweeps(self) -> None:
        asked = [
            name
            for name, is_asked in (
                ("--dmrg-mode two-site", self.dmrg_mode == "two-site"),
                ("--cut inputs", self.cut == "inputs"),
            )
            if is_asked
        ]
        if asked and self.method != "tt":
            raise ConfigError(
                f"{asked[0]} needs --method tt, got --method {self.method}, which has no sweeps"
            )
        if asked and self.ranks is None and not self.adaptive:
            raise ConfigError(
                f"{asked[0]}: nothing is swept, since the rank stays; give --ranks, --max-parameters, "
                "--max-error or --max-loss-increase"
            )
        if self.cut == "inputs" and self.dmrg_mode != "truncate":
            raise ConfigError(
                f"--cut inputs: --dmrg-mode {self.dmrg_mode} does not cut in a norm; use --dmrg-mode truncate"
            )
        if self.held_batches is not None and not asked:
            raise ConfigError(
                "--held-batches: no sweep looks at training data; give --cut inputs or --dmrg-mode two-site"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the ranks follow a budget or a tolerance instead of a schedule."""
        return any(
            value is not None for value in (self.max_parameters, self.max_error, self.max_loss_increase)
        )

    @property
    def starting_rank(self) -> Rank:
        """The rank the adapter is made with."""
        if self.ranks is not None and 0 in self.ranks:
            return self.ranks[0]
        return 8 if self.rank is None else self.rank

    @property
    def schedule_of_ranks(self) -> dict[int, Rank]:
        """Rank by completed epochs, from key 0 on."""
        return {0: self.starting_rank, **(self.ranks or {})}

    @property
    def learning_rate(self) -> float:
        """The learning rate of the adapter, or of the classifier where nothing else is trained."""
        return LEARNING_RATES[self.method] if self.lr is None else self.lr

    def to_json(self) -> dict[str, Any]:
        """The options as plain data, as `options.json` and `result.json` hold them.

        Returns:
            Name to value; tuples become lists, keys become strings.
        """
        return json.loads(json.dumps(dataclasses.asdict(self)))


def argument(name: str) -> str:
    """The option as it is typed.

    Args:
        name: Field of `FinetuneOptions`.

    Returns:
        `--` and the name with dashes.
    """
    return "--" + name.replace("_", "-")


def check_same(options: FinetuneOptions, stored: Path) -> None:
    """Refuse to resume a run with other options than it began with.

    Args:
        options: Options of this call.
        stored: The `options.json` of the run.

    Raises:
        FormatError: The file cannot be read.
        ConfigError: An option differs.
    """
    try:
        before = json.loads(stored.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{stored} cannot be read ({error}); start again with --overwrite") from None
    now = options.to_json()
    # Options that the version of the run did not know yet had their defaults.
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    before = {name: defaults[name] for name in now if name in LATER} | before
    changed = [name for name in now if name not in FREE_ON_RESUME and now[name] != before.get(name)]
    if changed:
        shown = ", ".join(f"{argument(name)} was {before.get(name)!r}, is {now[name]!r}" for name in changed)
        raise ConfigError(f"--resume needs the options the run began with: {shown}")
