"""An index over FAISS: how its kind is chosen, tuned, filled, searched, changed and stored."""
