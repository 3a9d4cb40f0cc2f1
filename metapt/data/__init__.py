"""Text for pretraining, labelled sentences for fine-tuning, and synthetic demo data for both."""

DEMO_NOTICE = "Synthetic demo data (data=demo): these scores say nothing about real languages."
