"""Networks: described, preprocessed, loaded, folded, fused."""
