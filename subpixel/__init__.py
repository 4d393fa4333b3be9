"""The `subpixel` program."""
