"""The specification of gennorm: the meaning of a layer, its definition in NumPy, and the vectors made from it."""
