"""The benchmark: Gaggle and its peers side by side in one run. See README.md beside this file."""
