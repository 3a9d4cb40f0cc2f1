"""The command `metapt generate`: sample text from a causal language model."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import GenerateConfig, commandline
from metapt.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Print a continuation of each prompt on the command line; without a prompt, a text from its beginning.

    Raises:
        UserError: an error in the arguments, or no causal language model.
    """
    settings, prompts = commandline.split_settings_and_texts(argv)
    config: GenerateConfig = commandline.load("generate", settings)
    from metapt.inference.text_sampling import sample_texts  # imports torch

    for text in sample_texts(config, prompts or [""]):
        print(text, flush=True)


if __name__ == "__main__":
    run_command(main)
