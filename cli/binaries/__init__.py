"""Programs written in Go that the mesh, its tests and its bench run: found on the machine, else built once.

Each folder beside this file is a Go module that pins one program and everything it is made of (go.mod, go.sum).
"""
