"""What takes part in benchmarks/loops.py: the workloads, and for each backend the ways to train on them."""
