"""What images tell of a network: importance, calibration statistics, sensitivity."""
