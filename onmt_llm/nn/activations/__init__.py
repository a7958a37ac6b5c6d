"""Two ways to keep fewer activations for the backward pass: recompute them, or offload them to the CPU's memory."""
