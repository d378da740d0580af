"""Layer 3: who decides. The agent, and the other search methods behind the same interface."""
