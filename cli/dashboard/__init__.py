"""`gaggle dashboard`: a page about the mesh that runs on this machine."""
