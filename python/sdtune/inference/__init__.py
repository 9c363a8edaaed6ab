"""Images of the learned concept: the plan, the processes that generate, and the OpenVINO export.

plan           what a job asks for, cut into batches, and checked against the run and this host
generator      a loaded pipeline (PyTorch or OpenVINO) that generates images
evaluations    the UNet's evaluations: guidance in an interval, cached features
feature_cache  the whole and the shallow UNet of an exported copy
draw           loading the generator for a plan, and generating one batch
worker         one process that generates, on this host or another
pool           the batches, the workers that have them, and what became of each
results        the folders drawn/ and images/ of a run, and the lock on them
images         PNG metadata, contact sheets, and the similarity of images
memory         how much memory generation needs
export         writing the OpenVINO copy of a run
tokenizer      the tokenizer as OpenVINO models
exported       what an exported copy says about itself
openvino       loading an exported copy, and its static shapes
"""
