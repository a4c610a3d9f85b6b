"""Other models than BERT, with the modules that are adapted by default."""

import json
import shutil

import pytest

SIZES = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 40}


@pytest.mark.parametrize(
    ("family", "config", "targets"),
    [
        ("mpnet", {**WIDE, "pad_token_id": 0}, ("attn.q", "attn.v")),
        ("roberta", {**WIDE, "pad_token_id": 0}, ("query", "value")),
        ("gpt2", {"vocab_size": 17, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}, ("c_attn",)),
        ("llama", {**WIDE, "num_key_value_heads": 1}, ("q_proj", "v_proj")),
    ],
)
def test_a_family_trains(ttnet, tiny_bert, data_dir, tmp_path, family, config, targets):
    from transformers import AutoConfig, AutoModel

    folder = tmp_path / family
    shutil.copytree(tiny_bert, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    AutoModel.from_config(AutoConfig.for_model(family, **config)).save_pretrained(folder)
    code, _, errors = ttnet(
        *(
            "finetune",
            "--model",
            folder,
            "--task",
            "praise",
            "--data-dir",
            data_dir,
            "--output",
            tmp_path / "out",
        ),
        *("--ranks", "0:3,1:2", "--epochs", 2, "--batch-size", 16, "--max-length", 12, "--threads", 1),
    )
    assert code == 0, errors
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {name.endswith(targets) for name in result["targets"]} == {True}
    assert max(result["ranks"]) == 2
    assert result["head_parameters"] > 0
