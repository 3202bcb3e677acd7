"""The files that travel with an export: they run where depthsys is not installed."""
