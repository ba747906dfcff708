"""A local web page that shows predictions and maps of a model for an image (extra `app`)."""
