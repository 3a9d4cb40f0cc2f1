"""metapt: meta-pretrain small decoder language models and measure how they transfer to unseen languages."""

__version__ = "0.1.0"
