"""LoRA networks and their conversion."""
