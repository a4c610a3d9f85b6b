"""Adapters to export, LoRA adapters to compress, and stock peft to check them with."""

import peft
import torch
import transformers

from tests.adapters.models import FAMILIES, adapted, logits


def build(family, seed=0):
    torch.manual_seed(seed)
    return FAMILIES[family].build()


def fitted(family, variant="4d", targets=None, **options):
    torch.manual_seed(0)
    return adapted(family, variant, targets, **{"alpha": 0.3} | options)


@torch.no_grad()
def with_peft(directory, model, run=logits):
    return run(peft.PeftModel.from_pretrained(model, str(directory)).eval())


@torch.no_grad()
def check_peft(directory, family, expected, tolerance=1e-5):
    base = logits(build(family))
    assert float((expected - base).abs().max()) > 1e-2
    torch.testing.assert_close(with_peft(directory, build(family)), expected, atol=tolerance, rtol=tolerance)


def peft_adapter(family, directory, seed=1, **options):
    """A LoRA that peft itself made and saved, its factors random."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=6, **({"target_modules": ["query", "value"]} | options))
    model = peft.get_peft_model(build(family), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
            elif "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained(str(directory))
    with torch.no_grad():
        return logits(model.eval())


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
    )
    return transformers.ViTForImageClassification(config)


def neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    return transformers.GPTNeoXForCausalLM(config)
