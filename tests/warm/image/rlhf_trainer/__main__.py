"""Stands in for the trainer's package: a fork of a process that has imported the real one."""

import os
import sys

from forking import FORKED_FROM, main

main(os.environ[FORKED_FROM], "rlhf_trainer", sys.argv[1:])
