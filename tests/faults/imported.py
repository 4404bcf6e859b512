"""All that a stage imports; the fork server loads it once, in place of every run."""

import importlib

from wshare.cli import STAGES

for name in STAGES:
    importlib.import_module(f"wshare.stages.{name}")
importlib.import_module("sklearn.datasets")
# By the first optimizer that is made.
importlib.import_module("torch._dynamo")
importlib.import_module("tests.faults.supervisor")
