"""What a network's outputs are, and how their quality is counted: a module a task."""
