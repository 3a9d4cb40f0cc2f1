"""Meta-learning: the inner loop and the objectives of pretraining."""
