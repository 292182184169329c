"""Train one run, or with --multirun every combination: `python -m gpt_ablate.train --help`."""

from gpt_ablate.launch import main

if __name__ == "__main__":
    main()
