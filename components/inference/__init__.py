"""Images in, predictions out: what is served, for one image or any number of files."""
