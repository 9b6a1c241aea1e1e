"""Models side by side: `zoo.comparison.run.compare`, which is `zoo.compare`."""
