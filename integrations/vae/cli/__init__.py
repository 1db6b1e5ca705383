"""``gradsurgery-vae``: trains models of tables, fills and makes up rows, and writes a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from .arguments import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; see ``--help``. Returns the exit status: 2 with one line on standard error if it fails.

    Args:
        arguments: Those of the command line. ``None``: of this process, which then keeps to one thread.
    """
    options = build_parser().parse_args(arguments)
    if arguments is None:
        # Matrices of width 50 gain nothing from a second thread, and lose much where another program runs.
        torch.set_num_threads(1)
    try:
        options.run(options)
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
