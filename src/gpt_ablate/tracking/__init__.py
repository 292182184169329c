"""What a run records while it goes on: JSONL, TensorBoard, progress bar."""
