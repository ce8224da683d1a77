"""What the operator makes for a service: one kind a file, each a pure function of a rendering."""
