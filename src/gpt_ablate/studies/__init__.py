"""Run directories and their records, studies, statistics and comparisons. Imports no torch."""
