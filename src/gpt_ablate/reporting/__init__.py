"""The report of a study: findings in words, tables, figures, pages. Imports no torch."""
