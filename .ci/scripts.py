"""Runs scripts, a line of the input each, until one fails.

Each runs in a fork of this process, which has imported what all of them would wait for.
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

import noisydml  # noqa: F401

for line in sys.stdin:
    print(f"$ python {line}", end="", flush=True)
    if os.fork() == 0:
        sys.argv = shlex.split(line)
        sys.path[0] = str(Path(sys.argv[0]).parent)  # as if it were the script that was called
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
    if status := os.waitstatus_to_exitcode(os.wait()[1]):
        sys.exit(status)
