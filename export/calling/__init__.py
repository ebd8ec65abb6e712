"""How a torch module is called, where its batch and time axes lie, and what states it shows.

Imports run left to right only:

tree <- call, conventions <- binding, extras, begin, attributes, lift <- kept, shapes
    <- start, module
    <- probing, rows, refusal <- called
"""
