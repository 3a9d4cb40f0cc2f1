"""The pretraining loop: engine, trainer, checkpoints, signals, telemetry."""
