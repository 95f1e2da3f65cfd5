"""The metrics, one module per family; each imports its libraries when it starts."""
