"""Names, questions, EDNS and resource records as bytes. Knows no sockets, clocks or threads."""
