"""The axes: one file each, holding every variant of that axis."""
