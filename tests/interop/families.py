"""Families of transformers, and plain modules, as small random models from configurations."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

from tests.interop.plain_modules import Images, Numbered, Torch

VOCABULARY = 40
_TOKENS = torch.arange(12).reshape(2, 6) % (VOCABULARY - 4) + 3
_MARKED = torch.tensor([[5, 6, 7, 2], [7, 8, 9, 2]])  # a sequence ends with token 2
_CLASSES = torch.tensor([0, 1])
_GENERATOR = torch.Generator().manual_seed(0)
_IMAGES = torch.randn(2, 3, 32, 32, generator=_GENERATOR)
_SOUND = torch.randn(2, 400, generator=_GENERATOR)
_MELS = torch.randn(2, 16, 40, generator=_GENERATOR)
_POINTS = torch.randn(2, 5, 32, generator=_GENERATOR)

LANGUAGE = {"input_ids": _TOKENS, "labels": _TOKENS}
CLASSES = {"input_ids": _TOKENS, "labels": _CLASSES}
MARKED = {"input_ids": _MARKED, "labels": _CLASSES}
IMAGES = {"pixel_values": _IMAGES, "labels": _CLASSES}

ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "num_labels": 3,
}
DECODER = ENCODER | ENDS
GROUPED = DECODER | {"num_key_value_heads": 2}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
    "num_labels": 3,
}
TOWER = {k: v for k, v in VISION.items() if k != "num_labels"} | {
    "hidden_size": 48,
    "num_hidden_layers": 3,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "eos_token_id": 2,
    "num_labels": 3,
}
SEQUENCES = ENDS | {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 20,
    "num_labels": 3,
}
GPT = ENDS | {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 20,
    "num_labels": 3,
}
ALTERNATING = ENDS | {"vocab_size": VOCABULARY, "hidden_size": 32, "n_head": 4, "n_layer": 2}
EXPERTS = GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [2, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_labels": 3,
}
WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 3,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "num_labels": 3,
    "mask_time_prob": 0.0,
}
LATENT = DECODER | {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}


@dataclass(frozen=True)
class Case:
    """One model, and what an adapter must find in it.

    Attributes:
        model: Class of transformers, or a function that makes a module.
        options: Of its configuration.
        inputs: Of its forward pass.
        default: Last parts of the names adapted by default; empty where they must be named.
        layers: Size of the layer axis.
        matrices: Size of the matrix axis by default and with "all-linear".
        head_dim: Width of a head, None where the 5D pattern is told it.
        saved: Modules trained whole by default.
        parts: For fused modules the parts that split="auto" makes of the last one.
        config: Class of the configuration, where its name is not that of the model.
        exclude: What peft cannot adapt here, or the 5D pattern.
    """

    model: str | Callable[[], nn.Module]
    options: dict[str, Any]
    inputs: dict[str, Any]
    default: str
    matrices: tuple[int, int]
    layers: int = 2
    head_dim: int | None = 8
    saved: str = ""
    parts: str = ""
    config: str = ""
    exclude: tuple[str, ...] = field(default=())

    def build(self) -> nn.Module:
        """The model, always with the same random weights."""
        torch.manual_seed(0)
        if not isinstance(self.model, str):
            return self.model().eval()
        name = self.config or self.model.split("For")[0].replace("LMHeadModel", "").replace("Model", "")
        config = getattr(transformers, f"{name}Config")(**self.options)
        return getattr(transformers, self.model)(config).eval()


_SC, _LM = "ForSequenceClassification", "ForCausalLM"
_QV, _QVP = "query value", "q_proj v_proj"
_QKV = "query key value"
_FALCON = ENDS | {
    k: ENCODER[k] for k in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")
}
_POSITIONS = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}


def _llamas(*names: str, **options: Any) -> dict[str, Case]:
    own = GROUPED | options
    return {
        n.lower(): Case(n + _LM, own, LANGUAGE, _QVP, (2, 7), head_dim=own.get("head_dim", 8)) for n in names
    }


def _causal(name: str, options: dict[str, Any], default: str, matrices: tuple[int, int], **own: Any) -> Case:
    return Case(name, options, LANGUAGE, default, matrices, **own)


def _classes(name: str, options: dict[str, Any], default: str = _QV, count: int = 6, **own: Any) -> Case:
    return Case(
        name + _SC, options, CLASSES, default, (len(default.split()), count), **{"saved": "classifier"} | own
    )


def _images(name: str, options: dict[str, Any], default: str = _QVP, **own: Any) -> Case:
    values = {"matrices": (2, 6), "saved": "classifier"} | own
    return Case(name, options, IMAGES, default, **values)


CASES: dict[str, Case] = {
    "bert": _classes("Bert", ENCODER),
    "bert-qa": Case(
        "BertForQuestionAnswering",
        ENCODER | {"num_labels": 2},
        {"input_ids": _TOKENS, "start_positions": _CLASSES, "end_positions": _CLASSES + 1},
        _QV,
        (2, 6),
        saved="qa_outputs",
    ),
    "roberta": _classes("Roberta", ENCODER),
    "roberta-mlm": Case("RobertaForMaskedLM", ENCODER, LANGUAGE, _QV, (2, 6)),
    "deberta-v2": _classes(
        "DebertaV2", ENCODER | _POSITIONS, "query_proj value_proj", 8, saved="classifier pooler"
    ),
    "deberta": _classes("Deberta", ENCODER | _POSITIONS, "in_proj", 6, saved="classifier pooler", parts=_QKV),
    "distilbert": _classes(
        "DistilBert",
        {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "num_labels": 3},
        "q_lin v_lin",
        saved="classifier pre_classifier",
    ),
    "electra": _classes("Electra", ENCODER | {"embedding_size": 16}),
    "albert": _classes("Albert", ENCODER | {"embedding_size": 16}, layers=1),
    "mpnet": _classes("MPNet", ENCODER, "q v"),
    "modernbert": _classes("ModernBert", DECODER, "Wqkv", 4, parts=_QKV),
    "t5": Case("T5ForConditionalGeneration", T5, LANGUAGE, "q v", (6, 16), head_dim=16),
    "t5-deeper-decoder": Case(
        "T5ForConditionalGeneration",
        T5 | {"num_decoder_layers": 3, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        LANGUAGE,
        "q v",
        (6, 18),
        layers=3,
        head_dim=16,
    ),
    "t5-classifier": Case(
        "T5ForSequenceClassification", T5, MARKED, "q v", (6, 16), head_dim=16, saved="classification_head"
    ),
    "umt5": Case("UMT5ForConditionalGeneration", T5, LANGUAGE, "q v", (6, 18), head_dim=16),
    "bart": Case("BartForConditionalGeneration", SEQUENCES, LANGUAGE, _QVP, (6, 16)),
    "bart-classifier": Case(
        "BartForSequenceClassification", SEQUENCES, MARKED, _QVP, (6, 16), saved="classification_head"
    ),
    "whisper": Case(
        "WhisperForConditionalGeneration",
        {k: v for k, v in SEQUENCES.items() if k != "max_position_embeddings"}
        | {
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "max_target_positions": 20,
            "decoder_start_token_id": 1,
        },
        {"input_features": _MELS, "labels": _TOKENS},
        _QVP,
        (6, 16),
    ),
    "vit": _images("ViTForImageClassification", VISION),
    "deit": _images("DeiTForImageClassification", VISION),
    "deit-teacher": _images(
        "DeiTForImageClassificationWithTeacher", VISION, saved="cls_classifier distillation_classifier"
    ),
    "dinov2": _images("Dinov2ForImageClassification", VISION | {"mlp_ratio": 2}),
    "beit": _images("BeitForImageClassification", VISION),
    "swin": _images("SwinForImageClassification", WINDOWS, matrices=(2, 7), layers=4),
    "segformer": _images("SegformerForImageClassification", PYRAMID, layers=3),
    "clip": Case(
        "CLIPModel",
        {
            "text_config": {k: v for k, v in ENCODER.items() if k != "num_labels"} | {"eos_token_id": 2},
            "vision_config": TOWER,
            "projection_dim": 24,
        },
        {"input_ids": _TOKENS, "pixel_values": _IMAGES, "return_loss": True},
        _QVP,
        (4, 12),
        layers=3,
    ),
    "wav2vec2": Case(
        "Wav2Vec2ForSequenceClassification",
        SPEECH,
        {"input_values": _SOUND, "labels": _CLASSES},
        _QVP,
        (2, 6),
        saved="classifier projector",
    ),
    "gpt2": _causal("GPT2LMHeadModel", GPT, "c_attn", (1, 4), parts=_QKV),
    "gpt2-classifier": _classes("GPT2", GPT, "c_attn", 4, parts=_QKV, saved="score"),
    "gpt-bigcode": _causal("GPTBigCodeForCausalLM", GPT, "c_attn", (1, 4), parts=_QKV),
    "gptj": _causal("GPTJForCausalLM", GPT | {"rotary_dim": 4}, _QVP, (2, 6)),
    "codegen": _causal(
        "CodeGenForCausalLM", GPT | {"rotary_dim": 4}, "qkv_proj", (1, 4), parts="query value key"
    ),
    "mpt": _causal(
        "MptForCausalLM",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 20},
        "Wqkv",
        (1, 4),
        parts=_QKV,
    ),
    "gpt-neox": _causal("GPTNeoXForCausalLM", DECODER, "query_key_value", (1, 4), parts=_QKV),
    "persimmon": _causal("PersimmonForCausalLM", DECODER, "query_key_value", (1, 4), parts=_QKV),
    "bloom": _causal("BloomForCausalLM", ALTERNATING, "query_key_value", (1, 4), parts=_QKV),
    "falcon": _causal("FalconForCausalLM", _FALCON, "query_key_value", (1, 4), parts=_QKV),
    "falcon-heads": _causal(
        "FalconForCausalLM", _FALCON | {"multi_query": False}, "query_key_value", (1, 4), parts=_QKV
    ),
    "falcon-groups": _causal(
        "FalconForCausalLM",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        "query_key_value",
        (1, 4),
        parts=_QKV,
    ),
    "opt": _causal(
        "OPTForCausalLM",
        {k: v for k, v in DECODER.items() if k != "intermediate_size"}
        | {"ffn_dim": 48, "word_embed_proj_dim": 16},
        _QVP,
        (2, 6),
    ),
    **_llamas("Llama", "Mistral", "Cohere", "StableLm", "Olmo", "Olmo2", "Granite"),
    **_llamas("Qwen2", tie_word_embeddings=True),
    **_llamas("Qwen3", "Gemma", "Gemma2", head_dim=16),
    "gemma3": Case(
        "Gemma3ForCausalLM",
        GROUPED | {"head_dim": 16},
        LANGUAGE,
        _QVP,
        (2, 7),
        head_dim=16,
        config="Gemma3Text",
    ),
    "llama-classifier": _classes("Llama", GROUPED, _QVP, 7, saved="score"),
    "phi": _causal("PhiForCausalLM", DECODER, _QVP, (2, 6)),
    "phi3": _causal("Phi3ForCausalLM", GROUPED, "qkv_proj", (1, 4), parts=_QKV),
    "glm": _causal("GlmForCausalLM", GROUPED | {"head_dim": 8}, _QVP, (2, 6)),
    "mixtral": _causal("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, _QVP, (2, 4)),
    "qwen3-moe": _causal("Qwen3MoeForCausalLM", EXPERTS | {"head_dim": 16}, _QVP, (2, 4), head_dim=16),
    "qwen2-moe": _causal(
        "Qwen2MoeForCausalLM",
        EXPERTS | {"shared_expert_intermediate_size": 40},
        _QVP,
        (2, 7),
        exclude=("shared_expert_gate",),
    ),
    "deepseek-v2": _causal(
        "DeepseekV2ForCausalLM",
        LATENT,
        "q_proj kv_b_proj",
        (2, 4),
        exclude=("gate_proj", "up_proj", "down_proj"),
    ),
    "mamba": _causal(
        "MambaForCausalLM",
        ENDS | {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "",
        (0, 2),
        head_dim=None,
        exclude=("out_proj", "dt_proj"),
    ),
    "llava": Case(
        "LlavaForConditionalGeneration",
        {
            "text_config": GROUPED | {"model_type": "llama"},
            "vision_config": TOWER | {"model_type": "clip_vision_model"},
            "image_token_index": 1,
        },
        LANGUAGE,
        _QVP,
        (4, 13),
        layers=3,
    ),
    "timm": Case(Images, {}, {"x": _POINTS}, "qkv", (1, 4), head_dim=None, saved="head"),
    "torchvision": Case(
        Numbered, {}, {"x": _POINTS}, "", (0, 2), layers=3, head_dim=None, saved="heads.head"
    ),
    "torch": Case(Torch, {}, {"x": _POINTS}, "", (0, 2), head_dim=None, saved="classifier"),
}
