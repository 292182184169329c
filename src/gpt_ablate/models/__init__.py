"""The GPT that wires the variants together: model, initial values, generation, conversion."""
