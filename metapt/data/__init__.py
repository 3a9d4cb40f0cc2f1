"""Text for pretraining, labelled sentences for fine-tuning, and the generated data that stands in for both."""

DEMO_NOTICE = "Generated text and labels (data=demo): figures made with them are no finding about languages."
