"""The training loop and what it uses: optimisers, schedules, budgets, checkpoints."""
