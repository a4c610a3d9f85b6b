"""`PeftCores`: the train of one adapter, kept once at the tuner, to which every adapted layer refers."""

import torch
from torch import Tensor

from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.cores import AdapterCores
from ttnet.adapters.factors import Mixture, relative_errors
from ttnet.adapters.initialization import initial_train
from ttnet.adapters.structure import Layout
from ttnet.adapters.workspace import Workspace
from ttnet.errors import StateError
from ttnet.tensor_train import TensorTrain


class PeftCores(AdapterCores):
    """The trained cores of one adapter, and what its layers read of them.

    It is a `TTParameter`: a `DMRGScheduler` sweeps it.

    Args:
        layout: What each matrix reads of the cores.
        config: The options.
        scale: The factor of dW.

    Attributes:
        layout: As given.
        config: As given.
        workspace: The factors of all matrices during a forward pass.
    """

    bypassed = False

    def __init__(self, layout: Layout, config: TTAdapterConfig, scale: float) -> None:
        super().__init__(initial_train(layout, config), config.modes_of(config.diagonal))
        self.layout = layout
        self.config = config
        self.workspace = Workspace(self, layout, scale)
        kept = [name for name in ("frozen", "diagonal") if getattr(config, name)]
        if kept:
            self.refusal = f"cores of this adapter are {' and '.join(kept)}, a sweep would change that"
        self.freeze()

    def freeze(self) -> None:
        """Take the gradient from the cores of the axes in `config.frozen`."""
        parameters = self.core_parameters()
        for k in self.config.modes_of(self.config.frozen):
            parameters[k].requires_grad_(False)

    @torch.no_grad()
    def delta(self, module: int) -> Tensor:
        """The dense dW (in, out) of one adapted module, in float32 or better.

        Args:
            module: Its index in the layout.

        Raises:
            StateError: Nothing, or one place for each sample, is selected on a run-time axis.
        """
        members = tuple(self.layout.modules.values())[module]
        left, right = self.workspace.live_pair(members, self.workspace.selection)
        if isinstance(right, Mixture):
            raise StateError(
                "delta: the samples of the batch read different places, there is no single dW; select one "
                f"{self.layout.runtime[0].name} first"
            )
        return left @ right

    def matrix_errors(self, before: TensorTrain, after: TensorTrain) -> dict[str, float]:
        """How far replacing one train by another moves each adapted matrix, relative to its norm.

        Args:
            before: The train that is the truth.
            after: A train of the same mode sizes, of any ranks.

        Returns:
            For each matrix |dW_before - dW_after| / |dW_before|, as `TTAdapter.matrix_errors` does.
        """
        return relative_errors(before.cores, after.cores, self.layout)
