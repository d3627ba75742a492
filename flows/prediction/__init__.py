"""`intaglio predict`: a few files or a hundred thousand, here or on a cluster."""
