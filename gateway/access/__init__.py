"""Who may call, how much and how often, and what they may spend."""
