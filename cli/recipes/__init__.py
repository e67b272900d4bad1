"""`gaggle recipes`: recipe files in and out, and their runs."""
