"""`python -m zoo.train recipes/<part>.toml [--device cuda] [--resume] [key=value ...]`."""

from __future__ import annotations

import argparse
import sys

from zoo.train import run
from zoo.train.command import mistakes_told


def main() -> int:
    """Train one part; returns the exit status, 130 after an interruption. An error ends the program with 1."""
    parser = argparse.ArgumentParser(prog="python -m zoo.train", description="Train one part from its recipe.")
    parser.add_argument("recipe", help="recipes/<part>.toml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimiser.lr=1e-3 minutes=40")
    parser.add_argument("--device", default=None, help="cpu, cuda, or cuda:N (default: cuda where there is one)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    arguments = parser.parse_intermixed_args()
    with mistakes_told():
        summary = run(arguments.recipe, arguments.overrides, device=arguments.device, resume=arguments.resume)
    return 0 if summary.finished else 130


if __name__ == "__main__":
    sys.exit(main())
