"""The decoder, the module that meta-pretraining trains, and their loss and attention."""
