"""A tiny random BERT with a tokenizer of its own, and files of separable documents."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.samples import WORDS, documents, write_jsonl


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a BERT of 2 layers of width 16 with a word-piece tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=32).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.1,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A directory with the task `praise`: 48 training, 16 dev and 16 test documents."""
    for seed, (split, count) in enumerate({"train": 48, "dev": 16, "test": 16}.items()):
        write_jsonl(tmp_path / "data" / "praise" / f"{split}.jsonl", documents(count, seed))
    return tmp_path / "data"


Ttnet = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ttnet() -> Ttnet:
    """Call the command line in this process: exit code, stdout, stderr."""
    from typer.testing import CliRunner

    from ttnet.cli.main import app

    def call(*words: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.exit_code, result.stdout, result.stderr

    return call
