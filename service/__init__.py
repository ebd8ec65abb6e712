"""Artifact -> live sessions. Imports run left to right only:

errors, config, wire <- pipeline, artifact, runtime <- session <- store, batcher <- engine
    <- protocols, api
"""
