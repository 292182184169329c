"""Texts, token files and tokenizers."""
