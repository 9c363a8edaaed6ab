"""Fast operations for frozen networks. The entry point is :func:`sdtune.ops.unet.optimize_unet`."""
