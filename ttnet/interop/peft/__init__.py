"""MetaTT as a method of the peft library: importing this module registers it there.

import ttnet.interop.peft
model = peft.get_peft_model(model, ttnet.interop.peft.MetaTTConfig(rank=8))
"""

from ttnet.interop.peft._versions import SUPPORTED
from ttnet.interop.peft.config import METHOD, MetaTTConfig
from ttnet.interop.peft.cores import PeftCores
from ttnet.interop.peft.layer import MetaTTLinear
from ttnet.interop.peft.model import MetaTTModel, register

MetaTTPeftConfig = MetaTTConfig
"""The same, under a name that cannot be taken for that of `ttnet.adapters.MetaTT`."""

__all__ = [
    "METHOD",
    "SUPPORTED",
    "MetaTTConfig",
    "MetaTTLinear",
    "MetaTTModel",
    "MetaTTPeftConfig",
    "PeftCores",
    "register",
]

register()
