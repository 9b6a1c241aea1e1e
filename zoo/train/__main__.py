"""`python -m zoo.train recipes/<part>.toml [--device cuda] [--resume] [key=value ...]`."""

from __future__ import annotations

import argparse
import sys

from zoo.train import RecipeError, TrainingError, run


def main() -> int:
    """Train one part; returns the exit status, 1 after an error and 130 after an interruption."""
    parser = argparse.ArgumentParser(prog="python -m zoo.train", description="Train one part from its recipe.")
    parser.add_argument("recipe", help="recipes/<part>.toml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimiser.lr=1e-3 minutes=40")
    parser.add_argument("--device", default=None, help="cpu, cuda, or cuda:N (default: cuda where there is one)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    arguments = parser.parse_intermixed_args()
    try:
        summary = run(arguments.recipe, arguments.overrides, device=arguments.device, resume=arguments.resume)
    except (RecipeError, TrainingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if summary.finished else 130


if __name__ == "__main__":
    sys.exit(main())
