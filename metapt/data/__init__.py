"""Text for pretraining, labelled sentences for fine-tuning, and the generated data that stands in for both."""
