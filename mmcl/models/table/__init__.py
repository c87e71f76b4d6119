"""The tower that embeds groups of columns: categories, numbers, and texts and images through towers of their own."""
