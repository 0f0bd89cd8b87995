"""What kdns promises, stated as tests."""
