"""Methods that learn from texts alone: a sentence twice, pairs, pairs with a score."""
