"""What a result was measured on, for the last line of its file."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import torch


def machine(leave_out: tuple[str, ...] = ("--cache",)) -> dict[str, Any]:
    """Versions, processor, and the command that was given.

    Args:
        leave_out: Options whose values say something of this machine alone; they are not part of the command shown.
    """
    words = [word for place, word in enumerate(sys.argv) if not {word, sys.argv[place - 1]} & set(leave_out)]
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "command": "python " + " ".join(words),
    }
