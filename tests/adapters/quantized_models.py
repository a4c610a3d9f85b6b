"""Linear modules that hold their weight as the libraries of quantization do, and models made of them."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.adapters.models import FAMILIES


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (out, in) as int8 and one scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class Packed(nn.Module):
    """GPTQ, AWQ: buffers of integers, no `weight`, and a product of its own."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        quantized, scale = rounded(linear.weight.detach())
        self.register_buffer("qweight", quantized.view(torch.int32))  # four numbers in one
        self.register_buffer("scales", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def dequantized(self):
        return self.qweight.view(torch.int8) * self.scales

    def forward(self, x):
        return F.linear(x, self.dequantized().to(x.dtype), self.bias)


class Bytes(nn.Parameter):
    """A parameter of bitsandbytes: flat, of integers, with what undoes it beside it."""


class Flat(nn.Linear):
    """Linear4bit: an `nn.Linear` whose weight has another shape and dtype."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        quantized, self.scale = rounded(linear.weight.detach())
        self.weight = Bytes(quantized.view(torch.uint8).reshape(-1, 1), requires_grad=False)

    def dequantized(self):
        return self.weight.view(torch.int8).view(self.out_features, self.in_features) * self.scale

    def forward(self, x):
        return F.linear(x, self.dequantized().to(x.dtype), self.bias)


class Subclass(Tensor):
    """A weight of torchao: it says float32 and the shape (out, in), and holds int8."""

    @staticmethod
    def __new__(cls, quantized, scale):
        return torch.Tensor._make_wrapper_subclass(cls, quantized.shape, dtype=scale.dtype)

    def __init__(self, quantized, scale):
        self.quantized, self.scale = quantized, scale

    def dequantized(self):
        return self.quantized * self.scale

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.dequantized(), *bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].quantized, args[0].scale)
        raise RuntimeError(f"{function} is not for quantized weights")


def with_subclass(linear):
    """An `nn.Linear` as torchao leaves it."""
    linear = copy.deepcopy(linear)
    linear.weight = nn.Parameter(Subclass(*rounded(linear.weight.detach())), requires_grad=False)
    return linear


class Float8(nn.Linear):
    """Float8 and a scale, in an `nn.Linear` whose weight is a parameter like any other."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        scale = linear.weight.detach().abs().max() / 448
        self.register_buffer("weight_scale", scale)
        self.weight = nn.Parameter(
            (linear.weight.detach() / scale).to(torch.float8_e4m3fn), requires_grad=False
        )

    def dequantized(self):
        return self.weight.to(torch.float32) * self.weight_scale

    def forward(self, x):
        return F.linear(x, self.dequantized().to(x.dtype), self.bias)


class Hidden(nn.Module):
    """torch.ao: `weight` is a method, the tensors are out of reach, and the product has no gradient."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = (*rounded(linear.weight.detach()), linear.bias)

    def weight(self):
        return self.dequantized()

    def bias(self):
        return self.packed[2]

    def dequantized(self):
        return self.packed[0] * self.packed[1]

    def forward(self, x):
        return F.linear(x.detach(), self.dequantized(), self.packed[2])


STAND_INS = {"gptq": Packed, "4bit": Flat, "subclass": with_subclass, "float8": Float8, "torch.ao": Hidden}


def dequantized(module: nn.Module) -> Tensor:
    """The weight (out, in) of one of the stand-ins."""
    return (
        module.weight if isinstance(module.__dict__["_parameters"].get("weight"), Subclass) else module
    ).dequantized()


def layered(model: nn.Module) -> list[str]:
    """The linear modules in layers."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layer" in f".{n}"]


def quantized_pair(kind: str, family: str = "llama") -> tuple[nn.Module, nn.Module]:
    """A model with quantized layers, and a float32 model with the same numbers."""
    model = FAMILIES[family].build()
    twin = copy.deepcopy(model)
    for name in layered(model):
        parent, _, child = name.rpartition(".")
        own = STAND_INS[kind](model.get_submodule(name))
        setattr(model.get_submodule(parent), child, own)
        with torch.no_grad():
            twin.get_submodule(name).weight.copy_(dequantized(own))
    return model, twin


def quantized_by_library(kind: str, model: nn.Module) -> nn.Module:
    """The layers of a model quantized by torchao, bitsandbytes or torch.ao; skips where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind.startswith("torchao"):
            quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
            config = {
                "torchao-int8": lambda: quantization.Int8WeightOnlyConfig(),
                "torchao-int4": lambda: quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4),
            }[kind]()
            quantization.quantize_(model.model, config)
        elif kind.startswith("bitsandbytes"):
            nn_ = pytest.importorskip("bitsandbytes", exc_type=ImportError).nn
            for name in layered(model):
                parent, _, child = name.rpartition(".")
                old = model.get_submodule(name)
                sizes = (old.in_features, old.out_features, old.bias is not None)
                new = (
                    nn_.Linear8bitLt(*sizes, has_fp16_weights=False)
                    if kind.endswith("8bit")
                    else nn_.Linear4bit(*sizes)
                )
                new.load_state_dict(old.state_dict(), strict=False)
                setattr(model.get_submodule(parent), child, new.to("cpu"))
        else:
            if "fbgemm" not in torch.backends.quantized.supported_engines:
                pytest.skip("this build of torch has no quantized products")
            quantize = pytest.importorskip("torch.ao.quantization").quantize_dynamic
            model.model = quantize(model.model, {nn.Linear}, dtype=torch.qint8)
    return model
