"""From a spec to finished runs: the plan, the runner, checkpoints, signals, progress and logs."""
