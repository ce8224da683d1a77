"""The contract of Sluice: the resource, the wire, and every name that two parts share."""
