"""Run folders to records: what is read of each run, checked against a schema and cached."""
