"""The Corefile: lexer, parser and typed values."""
