"""Scripts that run the tools of others, in an environment of their own, without depthsys."""
