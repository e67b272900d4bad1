"""The `gaggle` command: the mesh on one machine, and what a person does with it."""
