"""Opening what other libraries wrote: models by a specification, weights from their files, data from files."""
