"""Other DNS servers: how they are reached, asked over UDP, TCP, TLS and HTTPS, and watched."""
