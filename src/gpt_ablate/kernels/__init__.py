"""Quick forms of modules for float32 on the CPU; each has a plain one as its test."""
