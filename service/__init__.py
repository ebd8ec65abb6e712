"""Artifact -> live sessions. Imports run left to right only:

errors <- config, vocabulary, choice <- wire <- pipeline <- manifest, reading
    <- layout, artifact, runtime <- model <- catalog
    <- session <- job <- store, batcher <- engine <- protocols <- api

`client`, for those who ask, imports `errors` alone.
"""
