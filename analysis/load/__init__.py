"""From run folders to records: every file is checked against a schema, and the records are cached."""
