"""Clusters for rlprune: a local one for trying, and manifests with the rules that check them."""
