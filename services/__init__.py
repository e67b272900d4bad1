"""The services of the mesh, and the library they share."""
