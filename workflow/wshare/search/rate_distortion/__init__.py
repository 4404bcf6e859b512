"""The search method rate_distortion."""
