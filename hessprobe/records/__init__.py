"""What the commands write: one typed record each, read again as it was written."""
