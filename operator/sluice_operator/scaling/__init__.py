"""How many replicas a service wants: demand, what is learnt from it, and the decision. Pure."""
