"""Bytes of the network against the compiled modules, under AddressSanitizer and libFuzzer: `make fuzz`."""
