"""Classification of images: by the names of the classes, by neighbours, by a linear probe, by few labels."""
