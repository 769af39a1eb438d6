"""Pictures of layers, moments and plans: what they show is computed by pure functions; Matplotlib only renders it."""
