"""The agents: plain torch networks, and their RLlib modules."""
