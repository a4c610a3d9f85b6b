"""LoRA, both ways: adapters as files of peft, and LoRA adapters or fine-tuned models as one train."""

from ttnet.interop.lora.compression import Compression
from ttnet.interop.lora.deltas import from_delta
from ttnet.interop.lora.export import LoraReport, to_lora
from ttnet.interop.lora.loras import from_lora
from ttnet.interop.lora.peft_files import LoraFiles, read_lora

__all__ = ["Compression", "LoraFiles", "LoraReport", "from_delta", "from_lora", "read_lora", "to_lora"]
