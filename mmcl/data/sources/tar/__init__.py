"""WebDataset tar shards as a source of rows."""
