"""Layer capture: select layers, infer the axes of their activations and hook them."""
