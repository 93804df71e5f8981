"""`FSDP2Strategy`: Lightning's `ModelParallelStrategy` that takes all devices there are.

What adapters need of a run under it is in `callback/strategies/model_parallel.py`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.constants import default_pg_timeout
from typing_extensions import override

from pera_lightning.errors import ConfigError
from pera_lightning.option_checks import check_flags


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP2) over all devices, beside tensor parallelism where it is asked for.

    In `ModelParallelStrategy` "auto" is the number of machines, whatever devices they have.

    Args:
        data_parallel_size: Processes that share rows of data and shard the model; "auto": all that tensor parallelism
            leaves.
        tensor_parallel_size: Processes that split every layer; "auto": those of one machine.
        save_distributed_checkpoint: Each process saves its part, to one folder; else the first one saves a single file.
        process_group_backend: Of the process group, for example gloo.
        timeout: After which processes that wait for a lost one give up.

    Raises:
        ConfigError: Before processes wait for each other: the sizes do not make up the number of processes.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = 1,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        check_flags(save_distributed_checkpoint=save_distributed_checkpoint)
        super().__init__(
            data_parallel_size, tensor_parallel_size, save_distributed_checkpoint, process_group_backend, timeout
        )

    @override
    def setup_environment(self) -> None:
        """See `ModelParallelStrategy`."""
        processes = self.num_nodes * self.num_processes
        if self._tensor_parallel_size == "auto":
            self._tensor_parallel_size = self.num_processes
        if self._data_parallel_size == "auto":
            self._data_parallel_size = max(1, processes // self._tensor_parallel_size)
        if self._data_parallel_size * self._tensor_parallel_size != processes:
            raise ConfigError(
                "The sizes of the strategy do not make up the number of processes.",
                got=f"data_parallel_size={self._data_parallel_size} times tensor_parallel_size="
                f"{self._tensor_parallel_size} for {processes} processes ({self.num_nodes} machines with "
                f"{self.num_processes} devices)",
                expected="a product equal to the number of processes",
                fix="leave data_parallel_size at 'auto', and give a tensor_parallel_size that divides the devices",
            )
        super().setup_environment()


# What a user of the command line would type.
StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all devices", override=True)
