"""From a command line to runs: planning, Hydra's settings, launchers, execution."""
