"""Several processes: this version has no reductions, so it refuses instead of being silently wrong."""

import torch.distributed


def check_single_process(caller: str) -> None:
    """Raises if other processes train the same model: each would do a surgery of its own."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        if ranks > 1:
            raise RuntimeError(
                f"{caller}: `torch.distributed` must have one rank, got {ranks}. Surgery across ranks is not "
                f"supported in this version; per-rank surgery would be silently wrong."
            )
