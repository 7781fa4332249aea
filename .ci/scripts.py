"""Runs scripts, a line of the input each, until one fails.

Each runs in a fork of this process, which has imported what all of them would wait for. A line that
begins with "again" is tried once more if it fails.
"""

from __future__ import annotations

import os
import runpy
import shlex
import sys
from pathlib import Path

import matplotlib.pyplot  # noqa: F401
import pytorch_metric_learning.losses  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401 - what optimisers import

import noisydml  # noqa: F401


def status_of(command: list[str]) -> int:
    """With which a script ends."""
    print("$ python", *command, flush=True)
    if os.fork() == 0:
        sys.argv = command
        sys.path[0] = str(Path(sys.argv[0]).parent)  # as if it were the script that was called
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
    return os.waitstatus_to_exitcode(os.wait()[1])


for line in sys.stdin:
    command = shlex.split(line)
    again = command[0] == "again"
    status = status_of(command[again:])
    if status and again:
        status = status_of(command[1:])
    if status:
        sys.exit(status)
