"""Scripts that run where packages of others are installed, and depthsys is not."""
