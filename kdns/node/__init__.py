"""What `kdns node` needs of a node: queries to addresses that others may have too, brought to our sockets."""
