"""The configuration: validated, sliced for each stage, and described."""
