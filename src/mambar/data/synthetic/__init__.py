"""Images generated on the fly, with exact masks."""
