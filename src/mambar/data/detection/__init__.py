"""Images with objects: a box, a class and a mask for each."""
