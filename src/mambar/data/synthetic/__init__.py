"""Images drawn or composed on the fly, with exact masks."""
