"""Stages of the workflow: one module each, with one function of the same name that reads and writes files."""
