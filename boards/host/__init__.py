"""The host's end of a link: from a line of bytes to images."""
