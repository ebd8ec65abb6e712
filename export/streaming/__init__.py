"""Modules that show no state, as references that do: hidden loops, poolings, rolling windows.

Imports run left to right only:

{places, softmaxes} <- unrolled <- {copying, counting, boundary} <- pooling <- shifting <-
single_step <- first_step <- cut <- hidden_loop <- torch_finding;
window_call <- windowed
"""
