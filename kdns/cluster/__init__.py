"""Kubernetes objects, where they come from, and the records made of them."""
