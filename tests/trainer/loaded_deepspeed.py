"""Loads DeepSpeed as the trainer does, for processes that are forked from one that has."""

from rlhf_trainer.quiet import import_deepspeed

import_deepspeed()
