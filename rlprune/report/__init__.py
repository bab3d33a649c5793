"""Pictures and tables of result rows. Imports ``rlprune.results``, never Ray or torch."""
