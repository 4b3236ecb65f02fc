"""A training state in the shares of some ranks, laid out whole for any number of them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rlhf_trainer.quiet import no_bars, no_prints


def lay_out_whole(directory: Path, target: Path) -> None:
    """Write what DeepSpeed saved in `directory` (ZeRO-1 to 3) as its universal checkpoint: fp32
    weights and moments, one folder a parameter. Not a collective.

    Source: Lian et al. 2024, Universal Checkpointing.
    """
    from deepspeed.checkpoint import ds_to_universal

    options = Namespace(
        input_folder=str(directory),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # what tensor-parallel trainers would add: we have none
    )
    with no_prints(), no_bars():
        ds_to_universal.main(options)
