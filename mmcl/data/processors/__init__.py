"""From raw inputs to what a tower reads: tokens of texts, pixels of images."""
