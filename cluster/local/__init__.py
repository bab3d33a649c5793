"""A three-node Ray cluster on one Linux machine, each node in namespaces of its own."""
