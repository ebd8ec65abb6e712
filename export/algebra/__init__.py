"""What a traced step computes, whatever spells it: affine forms, functions, recurrent cells.

Imports run left to right only:

affine, packing, decompositions <- pointwise, trace <- form, terms, cells <- polynomial, network
    <- activations <- matching <- recognise
"""
