"""Training data: from videos with captions to batches of latents, conditioned by the same ``build()`` as generation.

The way of a video: ``manifest`` (what there is) -> ``video`` (what a file holds) -> ``ingest`` and ``windows`` (which frames
make a window) -> ``encode`` and ``shards`` (latents, written once) -> ``dataset`` and ``sampler`` (batches, resumable).
"""
