"""Artifact -> live sessions. Imports run left to right only:

errors <- config, wire <- pipeline, manifest, layout, artifact, runtime <- model <- catalog
    <- session <- job <- store, batcher <- engine <- protocols <- api
"""
