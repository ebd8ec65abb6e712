"""What a traced step computes, whatever spells it: affine forms, functions, recurrent cells.

Imports run left to right only:

affine, packing, decompositions <- pointwise, trace <- spellings, cells, terms <- form
    <- polynomial, network <- activations, bounded, sensitivity <- matching <- recognise
"""
