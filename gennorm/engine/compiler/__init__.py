"""How a kernel becomes machine code."""
