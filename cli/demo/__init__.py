"""`gaggle demo`: the main job of the mesh, shown as it happens and measured."""
