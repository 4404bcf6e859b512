"""Reports: one HTML page a model and one for the study, with their charts; nothing here imports torch."""
