"""The pretraining loop: trainer, engine, checkpoints, metrics and signals."""
