"""`python -m metapt.finetune`; as an attribute of the package, `metapt.finetune` is the function of metapt/api.py."""

from metapt.errors import run_command
from metapt.finetune_command import main

if __name__ == "__main__":
    run_command(main)
