"""Reading images from files, and batching them with worker processes."""
