"""Training a trial: its program, rollout workers, learner and the RLlib Algorithm."""
