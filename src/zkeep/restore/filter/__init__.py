"""Pass a send stream on as far as it is authentic."""
