"""Jobs of a grid: the plan, the executors, Slurm, and their status."""
