"""Speed, as ratios measured in one interleaved run."""

from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the checkout: servers and load generators start there
