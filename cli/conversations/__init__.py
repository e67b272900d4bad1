"""`gaggle conversations`: a person's way to the conversations that the mesh keeps."""
