"""The operator's commands beside `run`: one file each. `exclude` and `retry` make something new, the others only read."""
