"""Memory, floating-point operations, and time of a pretraining run, estimated before it starts. Imports no torch."""
