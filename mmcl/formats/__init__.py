"""Model files in and out: our own folder, and those of other libraries."""
