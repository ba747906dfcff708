"""Floor 6: a page on this machine that shows what a model sees in an image (extra `app`)."""
