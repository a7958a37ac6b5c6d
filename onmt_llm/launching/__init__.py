"""Scripts that start a training run on several machines (`scripts`), and Ray Train around it (`ray_train`)."""
