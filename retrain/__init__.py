"""The loop that turns recorded exchanges into the next student and proves it before it serves."""
