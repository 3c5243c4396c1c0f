"""What a run computes with: its data, network, initial weights, device and execution, built from its settings."""
