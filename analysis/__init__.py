"""From run folders to tables, figures and one page. Reads files only; imports nothing that trains."""
