"""Small tasks with published numbers, one module each, one command each: `python -m benchmarks.anchors.NAME --help`."""
