"""Prices, what a call costs, and what distilling saves."""
