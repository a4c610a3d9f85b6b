"""FSDP2 by accelerate: the base is sharded, the adapter is whole in every process."""

from typing import Any

import torch

from ttnet.adapters import TTAdapter, replicate
from ttnet.errors import ConfigError


def leave_unsharded(adapter: TTAdapter, accelerator: Any, device: torch.device) -> None:
    """Tell accelerate to leave an adapter and the modules it trains whole out of what it shards.

    They are replicated instead, so that ranks may change.

    Args:
        adapter: The adapter of the model that accelerate will prepare.
        accelerator: An `accelerate.Accelerator` with an FSDP plugin.
        device: Where this process computes.

    Raises:
        ConfigError: FSDP of version 1, or loading on one process only.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"fsdp_config: expected version 2, got {plugin.fsdp_version}, which flattens all parameters, "
            f"while sweeps change the shapes of cores; pass fsdp_config={{'version': 2, ...}}"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_config: cpu_ram_efficient_loading=True is not possible with an adapter, whose values it "
            "would drop; leave it out"
        )
    modules = [adapter, *adapter._saved_modules().values()]
    for module in modules:
        module.to(device)
    ignored = plugin.ignored_modules
    if isinstance(ignored, str):
        raise ConfigError(
            f"fsdp_config: expected ignored modules as a list, got the pattern {ignored!r}; the adapter is "
            "added to them"
        )
    plugin.ignored_modules = [*(ignored or ()), *modules]
    if not adapter.cores.replicated:
        replicate(adapter)
