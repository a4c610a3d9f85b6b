"""Models that are no transformers of a library: as in timm, as in torchvision, as in torch itself."""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A block as in timm: a fused `qkv`."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.attn.proj(mixed)
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(x)))


class Images(nn.Module):
    """As in timm: blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


class EncoderBlock(nn.Module):
    """As in torchvision: nn.MultiheadAttention, and the rest in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Dropout(0.0), nn.Linear(48, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


class Numbered(nn.Module):
    """As in torchvision: layers with names such as encoder_layer_0."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.heads = nn.Module(), nn.Sequential()
        self.encoder.layers = nn.Sequential()
        for k in range(3):
            self.encoder.layers.add_module(f"encoder_layer_{k}", EncoderBlock())
        self.heads.add_module("head", nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.encoder.layers(x).mean(1))


class Torch(nn.Module):
    """torch's own encoder and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classifier = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x).mean(1))
