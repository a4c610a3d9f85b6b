"""MetaTT as a method of the peft library: importing this module registers it there.

import ttnet.interop.peft
model = peft.get_peft_model(model, ttnet.interop.peft.MetaTTPeftConfig(rank=8))
"""

from ttnet.interop.peft._versions import SUPPORTED
from ttnet.interop.peft.config import METHOD, MetaTTPeftConfig
from ttnet.interop.peft.cores import PeftCores
from ttnet.interop.peft.layer import MetaTTLinear
from ttnet.interop.peft.model import MetaTTModel, register

__all__ = ["METHOD", "SUPPORTED", "MetaTTLinear", "MetaTTModel", "MetaTTPeftConfig", "PeftCores", "register"]

register()
