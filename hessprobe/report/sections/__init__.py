"""The sections of a page, one a file: each turns records into plain text, tables and pictures."""
