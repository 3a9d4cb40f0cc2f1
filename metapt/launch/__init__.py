"""Grids of jobs: the plan, execution on this machine or Slurm, and status."""
